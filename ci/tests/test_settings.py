"""Configs: order of inheritance, overrides, and what is said about mistakes."""

import re
from pathlib import Path

import pytest

from core.errors import UserError
from core.settings import COUNTS, NOT_NEGATIVE, WHOLE_NUMBERS_OR_NONE, default_settings, load_config

HEAD = "from easydict import EasyDict\nconfig = EasyDict()\n"
MIXBCT_BASE = Path(__file__).resolve().parents[3] / "methods" / "mixbct" / "configs" / "base.py"


@pytest.fixture
def write(tmp_path):
    """Write a config file below tmp_path with the given assignments."""

    def write_file(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.write_text(HEAD + "".join(f"config.{line}\n" for line in lines))
        return path

    return write_file


def test_later_sources_win_base_then_program_then_parent_then_file_then_command_line(write):
    program = write("program.py", "mix_ratio = 0.1", "lr = 0.2", "momentum = 0.2", "seed = 2", "margin = 0.2")
    write("parent.py", "lr = 0.3", "momentum = 0.3", "seed = 3")
    child = write("child.py", f"base = {str(program.parent / 'parent.py')!r}", "lr = 0.4", "momentum = 0.4")
    config = load_config(child, ["lr=0.5"], program)
    assert (config.lr, config.momentum, config.seed, config.margin, config.mix_ratio) == (0.5, 0.4, 3, 0.2, 0.1)
    assert config.weight_decay == 5e-4 and "base" not in config


def test_output_is_named_after_the_file_unless_it_is_set(write):
    assert load_config(write("some_run.py")).output == "work_dirs/some_run"
    assert load_config(write("other.py", "output = 'here'")).output == "here"


def test_key_of_a_program_is_unknown_to_another(write):
    path = write("config.py", "mix_ratio = 0.5")
    assert load_config(path, program_base=MIXBCT_BASE).mix_ratio == 0.5
    with pytest.raises(UserError, match="unknown config key 'mix_ratio'"):
        load_config(path)


@pytest.mark.parametrize("overrides", [["batchsize=3"], ["batch_sizes=3"], ["batch_sise=[1]"]])
def test_misspelt_key_is_told_with_the_nearest_known_one(write, overrides):
    with pytest.raises(UserError, match="unknown config key 'batch.*did you mean 'batch_size'"):
        load_config(write("config.py"), overrides)


def test_misspelt_key_in_a_file_is_told_with_that_file(write):
    parent = write("parent.py", "wieght_decay = 0.1")
    with pytest.raises(UserError, match=rf"wieght_decay' in {re.escape(str(parent))}; did you mean 'weight_decay'"):
        load_config(write("child.py", f"base = {str(parent)!r}"))


def test_part_of_network_options_can_be_set_alone(write):
    path = write("config.py", "network_options = dict(width=16, depth=2)")
    config = load_config(path, ["network_options.width=8", "network_options.depth=(1,2,2,1)"])
    assert config.network_options == {"width": 8, "depth": (1, 2, 2, 1)}
    assert load_config(path).network_options == {"width": 16, "depth": 2}
    with pytest.raises(UserError, match="'lr' .* has no parts"):
        load_config(path, ["lr.x=3"])


def test_loading_twice_gives_independent_results(write):
    path = write("config.py", "network_options = dict(width=16)")
    first, second = load_config(path), load_config(path)
    first.network_options.width, first.lr = 1, 7.0
    assert second.network_options.width == 16 and second.lr == 0.1
    assert load_config(path).network_options.width == 16


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr=1", "lr", 1.0),
        ("weight_decay=1e-4", "weight_decay", 1e-4),
        ("resume=false", "resume", False),
        ("resume=True", "resume", True),
        ("features=none", "features", None),
        ("image_size=None", "image_size", None),
        ("augment=flip", "augment", ("flip",)),
        ("augment=()", "augment", ()),
        ("val_targets=['lfw','agedb_30']", "val_targets", ("lfw", "agedb_30")),
        ("output=work_dirs/a=b", "output", "work_dirs/a=b"),
        ("network=r50", "network", "r50"),
    ],
)
def test_override_takes_the_type_of_the_key(write, text, key, value):
    result = load_config(write("config.py"), [text])[key]
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    "text",
    ["lr=fast", "batch_size=1.5", "resume=1", "batch_size=true", "network_options=3", "lr=none", "network=50",
     "augment=none", "rec=7", "output=1", "image_size=big", "image_size=1.5", "val_targets=7"],
)  # fmt: skip
def test_value_of_another_type_is_told_with_key_and_value(write, text):
    key, value = text.split("=")
    with pytest.raises(UserError) as caught:
        load_config(write("config.py"), [text])
    message = str(caught.value)
    assert f"'{key}' in the command line must be of type" in message and value.lower() in message.lower()


def test_value_out_of_range_is_told_with_its_bound(write):
    path = write("config.py")
    for key in COUNTS:
        with pytest.raises(UserError, match=f"'{key}' must be at least 1, got 0"):
            load_config(path, [f"{key}=0"])
    for key in NOT_NEGATIVE:
        assert load_config(path, [f"{key}=0"])[key] == 0
        with pytest.raises(UserError, match=f"'{key}' must be at least 0, got -1"):
            load_config(path, [f"{key}=-1"])
    assert set(COUNTS) | set(NOT_NEGATIVE) | set(WHOLE_NUMBERS_OR_NONE) <= set(load_config(path))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("augment=[[1]]", "'augment' in the command line must be a list of names"),
        ("schedule_epochs=[1,'a']", "'schedule_epochs' in the command line must be a list of numbers"),
        ("network_options={[]:1}", "'network_options' in the command line must be of type EasyDict"),
        ("seed=4294967296", "'seed' must be at most 4294967295, got 4294967296"),
    ],
)
def test_list_of_other_things_and_seeds_no_generator_takes_are_told(write, text, part):
    with pytest.raises(UserError, match=part):
        load_config(write("config.py"), [text])


@pytest.mark.parametrize("text", ["lr", "=3", "0.1"])
def test_override_without_key_or_value_is_told(write, text):
    with pytest.raises(UserError, match="an override is written key=value"):
        load_config(write("config.py"), [text])


def test_missing_file_is_told_with_the_folder_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"config not found: no/such.py .*{re.escape(str(tmp_path))}"):
        load_config("no/such.py")


@pytest.mark.parametrize(("text", "what"), [("a b\n", "SyntaxError"), ("config.lr = undefined\n", "NameError")])
def test_broken_file_is_told_with_its_line(tmp_path, text, what):
    path = tmp_path / "broken.py"
    path.write_text(HEAD + "\n" + text)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 4, cannot be read: {what}"):
        load_config(path)


def test_file_without_config_missing_base_and_circle_are_told(tmp_path, write):
    (tmp_path / "empty.py").write_text("lr = 1\n")
    with pytest.raises(UserError, match="empty.py must assign an EasyDict named `config`"):
        load_config(tmp_path / "empty.py")
    with pytest.raises(UserError, match=r"child.py names a base that does not exist: .*nowhere.py"):
        load_config(write("child.py", "base = 'nowhere.py'"))
    with pytest.raises(UserError, match="inherits from itself"):
        load_config(write("circle.py", f"base = {str(tmp_path / 'circle.py')!r}"))


def test_help_shows_every_key_with_its_comment():
    lines = default_settings(MIXBCT_BASE).splitlines()
    assert "lr = 0.1  # for the batch of all ranks as it is: never scaled by itself" in lines
    assert any(line.startswith("mix_ratio = 0.3  # r:") for line in lines)
