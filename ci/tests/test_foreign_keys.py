"""Settings as users of other programs write them: taken where they can mean one thing alone, else one line."""

import logging
from pathlib import Path

import pytest

from core.errors import UserError
from core.files import ROOT
from core.settings import Settings, load_settings, split_arguments
from core.settings.foreign_keys import ABSENT, INSTEAD, RENAMED, TRANSLATIONS, WITHOUT_EFFECT
from core.settings.keys import keys_of

HEAD = "from easydict import EasyDict as edict\nconfig = edict()\n"
ARCFACE_TORCH = """
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r50"
config.resume = False
config.output = None
config.embedding_size = 512
config.sample_rate = 0.1
config.interclass_filtering_threshold = 0
config.fp16 = True
config.weight_decay = 1e-4
config.batch_size = 128
config.optimizer = "SGD"
config.lr = 0.1
config.verbose = 2000
config.dali = False
config.rec = "/train_tmp/faces"
config.num_classes = 30 * 100
config.num_image = 10000
config.num_epoch = 20
config.warmup_epoch = -1
config.val_targets = ['lfw', 'cfp_fp', "agedb_30"]
config.using_wandb = False
config.wandb_key = "secret"
config.save_all_states = True
"""
"""In the form of arcface_torch's own files."""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(HEAD)
    return path


def test_config_of_arcface_torch_is_taken_as_it_is_and_the_log_says_how(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "faces_r50.py"
    path.write_text(HEAD + ARCFACE_TORCH)
    settings = load_settings(path)
    assert (settings.loss, settings.margin, settings.margin_scale) == ("cosface", 0.4, 64.0)
    assert (settings.precision, settings.optimizer, settings.warmup_epoch) == ("fp16", "sgd", 0)
    assert (settings.num_classes, settings.num_image, settings.sample_rate) == (3000, 10000, 0.1)
    assert settings.val_targets == ("lfw", "cfp_fp", "agedb_30") and settings.output == "work_dirs/faces_r50"
    unused = "dali, using_wandb, wandb_key, save_all_states"
    assert caplog.messages == [
        f"taken from {path}: margin_list as loss='cosface', margin=0.4; fp16 as precision='fp16'",
        f"without effect in {path}: {unused}",
    ]


def test_all_mistakes_of_a_file_are_told_at_once_and_no_value_of_a_secret(tmp_path):
    path = tmp_path / "config.py"
    lines = ("dali = True", "old_embedding = 'x.npy'", "lr = 'fast'", "wieght_decay = 1", "wandb_key = 'secret'")
    path.write_text(HEAD + "".join(f"config.{line}\n" for line in lines))
    with pytest.raises(UserError) as raised:
        load_settings(path)
    assert str(raised.value) == (
        f"config key 'dali' in {path}: images are read by num_workers processes, without DALI: leave it out; "
        "config key 'old_embedding': what the old model gives is made by itself: name that model with old_model; "
        "config key 'lr' must be a number >= 0, got 'fast'; "
        "unknown config key 'wieght_decay'; did you mean 'weight_decay'? (train.py --help lists all keys)"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fp16=True", {"precision": "fp16"}),
        ("fp16=1", {"precision": "fp16"}),
        ("fp16=false", {"precision": "fp32"}),
        ("margin_list=(1.0, 0.5, 0.0)", {"loss": "arcface", "margin": 0.5}),
        ("margin_list=1,0,0.35", {"loss": "cosface", "margin": 0.35}),
        ("margin_list=[1, 0, 0]", {"loss": "arcface", "margin": 0.0}),
        ("feat_dim=256", {"embedding_size": 256}),
        ("work_dir=runs/x", {"output": "runs/x"}),
        ("old_net=r18", {"old_network": "r18"}),
        ("epochs=7", {"num_epoch": 7}),
        ("margin_loss=CosFace", {"loss": "cosface"}),
        ("config.lr=1e-1", {"lr": 0.1}),
        ("cfg.network_options.width=8", {"network_options": {"width": 8}}),
        ("batch-size=8", {"batch_size": 8}),
        ("LR=0.5", {"lr": 0.5}),
        ("batch_size=1e2", {"batch_size": 100}),
        ("sample_rate=10%", {"sample_rate": 0.1}),
        ("sample_rate=2.5 %", {"sample_rate": 0.025}),
        ("optimizer=SGD", {"optimizer": "sgd"}),
        ("optimizer=AdamW", {"optimizer": "adamw"}),
        ("loss=Arc-Face", {"loss": "arcface"}),
        ("precision=FP-16", {"precision": "fp16"}),
        ("precision=bfloat16", {"precision": "bf16"}),
        ("precision=16", {"precision": "fp16"}),
        ("schedule=poly", {"schedule": "polynomial"}),
        ("device=GPU", {"device": "cuda"}),
        ("warmup_epoch=-1", {"warmup_epoch": 0}),
        ("resume=0", {"resume": False}),
        ("compile=yes", {"compile": True}),
        ("val_targets=lfw,cfp_fp", {"val_targets": ("lfw", "cfp_fp")}),
        ("val_targets=[lfw, cfp_fp,]", {"val_targets": ("lfw", "cfp_fp")}),
        ("val_targets=lfw cfp_fp agedb_30", {"val_targets": ("lfw", "cfp_fp", "agedb_30")}),
        ("val_targets=", {"val_targets": ()}),
        ("schedule_epochs=5", {"schedule_epochs": (5,)}),
        ("schedule_epochs=5,10", {"schedule_epochs": (5, 10)}),
        ("dali=False", {}),
        ("save_all_states=True", {}),
        ("interclass_filtering_threshold=0", {"interclass_filtering_threshold": 0.0}),
    ],
)
def test_override_that_can_mean_one_thing_alone_is_taken_as_that(config, text, expected):
    plain, settings = load_settings(config), load_settings(config, [text])
    values = vars(plain) | expected
    assert vars(settings) == values and {key: type(value) for key, value in vars(settings).items()} == {
        key: type(value) for key, value in values.items()
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "resume=work_dirs/old",
            "'resume' .* must be True or False, got 'work_dirs/old'; to go on with a run, name its",
        ),
        ("fp16=maybe", "'fp16' in the command line: set precision: fp16, bf16 or fp32"),
        (
            "margin_list=(1.0, 0.3, 0.2)",
            "combined margin 1, 0.3, 0.2 is not here: set loss=arcface margin=0.3, or loss=",
        ),
        ("margin_list=0.5", "'margin_list' in the command line: set loss, and margin for its m"),
        ("dali=True", "'dali' .*: images are read by num_workers processes, without DALI: leave it out"),
        ("using_wandb=1", "metrics are in metrics.jsonl and tensorboard/ of the run folder: leave it out"),
        ("decay_epoch=[20,26]", r"for steps of lr set schedule=step and schedule_epochs=\(10,20\)"),
        ("data_path=/faces", "name the training images with rec"),
        ("pretrained=old.pt", "a new one starts from given weights with weights"),
        ("gpus=8", "start the program with torchrun --nproc_per_node=NUMBER"),
        ("amp=True", "set precision: bf16, fp16 or fp32"),
        ("epochs=0", "'num_epoch' in the command line must be a whole number >= 1, got 0"),
        ("device=cuda:1", "must be 'auto', 'cuda' or 'cpu', got 'cuda:1'; GPUs are chosen with CUDA_VISIBLE_DEVICES"),
        ("sample_rate=1.2.3%", "must be a number > 0 and <= 1, got '1.2.3%'"),
        ("sample_rate=150%", "must be a number > 0 and <= 1, got '150%'"),
        ("compile=-1", "'compile' in the command line must be True or False, got -1"),
        ("output='a\\0b'", r"'output' in the command line must be text or None, got 'a\\x00b'"),
        ("lr", "an override is written key=value, without blanks, got 'lr'"),
    ],
)
def test_override_that_cannot_be_taken_says_what_to_write(config, text, message):
    with pytest.raises(UserError, match=message):
        load_settings(config, [text])


def test_two_values_for_one_key_in_a_file_are_an_error_but_an_override_wins(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(HEAD + "config.fp16 = True\nconfig.precision = 'bf16'\n")
    with pytest.raises(UserError, match="gives two values for 'precision', 'fp16' and 'bf16': leave one out"):
        load_settings(path)
    path.write_text(HEAD + "config.fp16 = True\nconfig.loss = 'arcface'\nconfig.margin_list = (1, 0.5, 0)\n")
    assert load_settings(path, ["precision=bf16"]).precision == "bf16"


def test_own_key_of_a_method_is_never_taken_for_a_foreign_one():
    own = {key for folder in (ROOT / "methods").iterdir() for key in _method_keys(folder)} | set(keys_of(Settings))
    foreign = {*RENAMED, *TRANSLATIONS, *ABSENT, *WITHOUT_EFFECT, *INSTEAD}
    assert not own & foreign and set(RENAMED.values()) <= set(keys_of(Settings))


def _method_keys(folder: Path) -> list[str]:
    lines = (folder / "train.py").read_text().splitlines()
    return [line.split(":")[0].strip() for line in lines if " = key(" in line]


@pytest.mark.parametrize(
    ("words", "config", "overrides"),
    [
        (["c.py", "lr=1"], "c.py", ["lr=1"]),
        (["c.py", "--lr=1", "--batch-size", "8"], "c.py", ["lr=1", "batch-size=8"]),
        (["--config", "c.py", "-lr", "0.1"], "c.py", ["lr=0.1"]),
        (["lr=1", "c.py", "seed=2"], "c.py", ["lr=1", "seed=2"]),
        (["--compile", "c.py", "--resume", "--lr", "1"], "c.py", ["compile=True", "resume=True", "lr=1"]),
        (["--local-rank=0", "c.py"], "c.py", []),
        (["--local_rank", "1", "c.py", "d.py"], "c.py", ["d.py"]),
        (["c.py", "val_targets=[lfw,", "cfp]"], "c.py", ["val_targets=[lfw,", "cfp]"]),
    ],
)
def test_command_line_with_options_is_read_as_config_and_overrides(words, config, overrides):
    assert split_arguments(words) == (config, overrides)


@pytest.mark.parametrize("words", [[], ["lr=1"], ["--lr", "1"]])
def test_command_line_without_a_config_is_an_error(words):
    with pytest.raises(UserError, match="no config is named, for example configs/glyphs.py"):
        split_arguments(words)


def test_config_may_be_named_without_its_ending(config):
    assert load_settings(config.with_suffix("")) == load_settings(config)
    with pytest.raises(UserError, match=f"config {config.parent} is a folder: name a file in it"):
        load_settings(config.parent)
    yaml = config.with_suffix(".yml")
    yaml.write_text("TRAIN:\n  LR: [\n")
    with pytest.raises(UserError, match=r"config .*\.yml, line \d, cannot be read: .*; a config is a Python file$"):
        load_settings(yaml)


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("rec", "faces/train"),
        ("rec", "faces/list.txt"),
        ("old_model", "old"),
        ("image_root", "faces"),
        ("rec_val", "faces"),
        ("features", "old"),
        ("output", "old"),
        ("output", "runs/new"),
    ],
)
def test_path_below_the_present_folder_alone_is_an_error_that_names_both_places(config, monkeypatch, key, there):
    for folder in ("faces", "old", "runs"):
        (config.parent / folder).mkdir()
    for file in ("faces/train.rec", "faces/list.txt"):
        (config.parent / file).write_text("")
    monkeypatch.chdir(config.parent)
    message = (
        f"'{key}' is '{there}', .*: there is no {ROOT}/{there}, but there is {config.parent}/{there}; name that in"
    )
    with pytest.raises(UserError, match=message):
        load_settings(config, [f"{key}={there}"])
    assert load_settings(config, [f"{key}={config.parent / there}"])
    monkeypatch.chdir(ROOT)
    assert getattr(load_settings(config, [f"{key}={there}"]), key) == there


def test_path_in_both_places_is_that_of_the_root_and_the_log_says_so(config, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (config.parent / "configs").mkdir()
    monkeypatch.chdir(config.parent)
    assert load_settings(config, ["rec_val=configs", "output=configs"]).rec_val == "configs"
    place = config.parent / "configs"
    text = f"rec_val: {ROOT / 'configs'} is used, not {place}: paths are relative to the root of the checkout"
    assert caplog.messages == [text]
