"""Settings: their declaration, the inheritance of config files, overrides, and the errors for mistakes."""

import re
from dataclasses import FrozenInstanceError, asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest

from core.errors import UserError
from core.settings import Settings, describe, key, load_settings

HEAD = "from easydict import EasyDict\nconfig = EasyDict()\n"


@dataclass(frozen=True, kw_only=True)
class OwnSettings(Settings):
    """A method's settings, with each kind of range."""

    ratio: float = key(0.3, "r: of what is mixed", minimum=0, maximum=1, heading="Own")
    rate: float = key(0.5, "T", above=0, below=1)
    pair: tuple[float, float] = key((1.0, 10.0), "w_1, w_2", minimum=0)
    epochs: tuple[int, ...] = key((), "from 0", minimum=0)
    side: Literal["rows", "columns"] = key("rows", "what sums to 1")
    steps: int | None = key(None, "K", minimum=1)

    def __post_init__(self) -> None:
        if any(epoch >= self.num_epoch for epoch in self.epochs):
            raise UserError(f"epochs is {self.epochs}, but num_epoch is {self.num_epoch}")


@pytest.fixture
def write(tmp_path):
    """Write a config file below tmp_path with the given assignments."""

    def write_file(name: str, *lines: str) -> Path:
        path = tmp_path / name
        path.write_text(HEAD + "".join(f"config.{line}\n" for line in lines))
        return path

    return write_file


def test_later_sources_win_defaults_then_bases_in_turn_then_file_then_command_line(write, tmp_path):
    write("general.py", "lr = 0.1", "momentum = 0.1", "seed = 1", "margin = 0.1", "margin_scale = 1.0")
    general = f"base = {str(tmp_path / 'general.py')!r}"
    write("first.py", general, "lr = 0.2", "momentum = 0.2", "seed = 2", "margin = 0.2")
    write("second.py", "lr = 0.3", "momentum = 0.3", "seed = 3")
    bases = [str(tmp_path / name) for name in ("first.py", "second.py")]
    child = write("child.py", f"base = {bases!r}", "lr = 0.4", "momentum = 0.4")
    settings = load_settings(child, ["lr=0.5"])
    assert (settings.lr, settings.momentum, settings.seed, settings.margin) == (0.5, 0.4, 3, 0.2)
    assert settings.margin_scale == 1.0 and settings.weight_decay == 5e-4
    assert load_settings(write("reversed.py", f"base = {bases[::-1]!r}")).seed == 2


def test_base_is_below_the_repository_root(write):
    settings = load_settings(write("child.py", "base = 'configs/datasets/glyphs.py'", "lr = 0.4"))
    assert (settings.network, settings.embedding_size, settings.lr) == ("r18", 128, 0.4)


def test_output_is_named_after_the_file_unless_it_is_set(write):
    assert load_settings(write("some_run.py")).output == "work_dirs/some_run"
    assert load_settings(write("other.py", "output = 'here'")).output == "here"


def test_key_of_a_method_is_unknown_to_another_program(write):
    path = write("config.py", "ratio = 0.5")
    assert load_settings(path, settings_type=OwnSettings).ratio == 0.5
    with pytest.raises(UserError, match="unknown config key 'ratio'"):
        load_settings(path)


def test_settings_cannot_be_changed(write):
    with pytest.raises(FrozenInstanceError):
        load_settings(write("config.py")).lr = 1.0


@pytest.mark.parametrize("overrides", [["batchsize=3"], ["batch_sizes=3"], ["batch_sise=[1]"]])
def test_misspelt_key_is_an_error_with_the_nearest_known_one(write, overrides):
    with pytest.raises(UserError, match="unknown config key 'batch.*did you mean 'batch_size'"):
        load_settings(write("config.py"), overrides)


def test_misspelt_key_in_a_file_is_an_error_with_that_file(write):
    parent = write("parent.py", "wieght_decay = 0.1")
    with pytest.raises(UserError, match=rf"wieght_decay' in {re.escape(str(parent))}; did you mean 'weight_decay'"):
        load_settings(write("child.py", f"base = {str(parent)!r}"))


def test_part_of_network_options_can_be_set_alone(write):
    path = write("config.py", "network_options = dict(width=16, depth=2)")
    settings = load_settings(path, ["network_options.width=8", "network_options.depth=(1,2,2,1)"])
    assert settings.network_options == {"width": 8, "depth": (1, 2, 2, 1)}
    assert load_settings(path).network_options == {"width": 16, "depth": 2}
    with pytest.raises(UserError, match="'lr' .* has no parts"):
        load_settings(path, ["lr.x=3"])


def test_loading_twice_gives_independent_results(write):
    path = write("config.py", "network_options = dict(width=16)")
    first, second = load_settings(path), load_settings(path)
    first.network_options["width"] = 1
    assert second.network_options == {"width": 16} == load_settings(path).network_options
    Settings().network_options["width"] = 1
    assert Settings().network_options == {}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr=1", "lr", 1.0),
        ("weight_decay=1e-4", "weight_decay", 1e-4),
        ("resume=false", "resume", False),
        ("resume=True", "resume", True),
        ("features=none", "features", None),
        ("image_size=None", "image_size", None),
        ("image_size=32", "image_size", 32),
        ("schedule_epochs=[1,2.5]", "schedule_epochs", (1, 2.5)),
        ("augment=flip", "augment", ("flip",)),
        ("augment=()", "augment", ()),
        ("val_targets=['lfw','agedb_30']", "val_targets", ("lfw", "agedb_30")),
        ("output=work_dirs/a=b", "output", "work_dirs/a=b"),
        ("network=r50", "network", "r50"),
    ],
)
def test_override_takes_the_type_of_the_key(write, text, key, value):
    result = getattr(load_settings(write("config.py"), [text]), key)
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("lr=fast", "a number >= 0"),
        ("lr=none", "a number >= 0"),
        ("lr=-1", "a number >= 0"),
        ("lr=true", "a number >= 0"),
        ("batch_size=1.5", "a whole number >= 1"),
        ("batch_size=true", "a whole number >= 1"),
        ("batch_size=0", "a whole number >= 1"),
        ("seed=4294967296", "a whole number >= 0 and <= 4294967295"),
        ("sample_rate=0", "a number > 0 and <= 1"),
        ("sample_rate=1.5", "a number > 0 and <= 1"),
        ("image_size=big", "a whole number >= 1 and <= 8192 or None"),
        ("image_size=1.5", "a whole number >= 1 and <= 8192 or None"),
        ("image_size=0", "a whole number >= 1 and <= 8192 or None"),
        ("resume=2", "True or False"),
        ("network=50", "text"),
        ("rec=7", "text or None"),
        ("output=1", "text or None"),
        ("network_options=3", "a dict"),
        ("network_options={[]:1}", "a dict"),
        ("network_options={1:2}", "a dict"),
        ("augment=none", "a list of names"),
        ("augment=[[1]]", "a list of names"),
        ("val_targets=7", "a list of names"),
        ("schedule_epochs=[1,'a']", "a list of numbers"),
        ("schedule=linear", "'polynomial', 'step' or 'cosine'"),
        ("schedule=[1]", "'polynomial', 'step' or 'cosine'"),
        ("ratio=-0.1", "a number >= 0 and <= 1"),
        ("ratio=1.1", "a number >= 0 and <= 1"),
        ("rate=0", "a number > 0 and < 1"),
        ("rate=1", "a number > 0 and < 1"),
        ("pair=(1,)", "a list of 2 numbers >= 0"),
        ("pair=(1,-10)", "a list of 2 numbers >= 0"),
        ("epochs=(1,-1)", "a list of whole numbers >= 0"),
        ("epochs=(1.5,)", "a list of whole numbers >= 0"),
        ("side=both", "'rows' or 'columns'"),
        ("steps=0", "a whole number >= 1 or None"),
    ],
)
def test_value_of_another_type_or_out_of_range_is_an_error_that_says_what_is_wanted(write, text, requirement):
    start = f"config key {text.split('=')[0]!r} in the command line must be {requirement}, got "
    with pytest.raises(UserError, match=f"^{re.escape(start)}"):
        load_settings(write("config.py"), [text], OwnSettings)


@pytest.mark.parametrize("text", ["ratio=0", "ratio=1", "rate=0.01", "pair=(0,0)", "epochs=(0,34)", "steps=1", "lr=0"])
def test_bound_itself_is_allowed_unless_it_is_exclusive(write, text):
    load_settings(write("config.py"), [text], OwnSettings)


def test_value_out_of_range_in_a_file_is_an_error_that_names_the_file(write):
    path = write("config.py", "batch_size = 0")
    with pytest.raises(UserError, match=rf"'batch_size' in {re.escape(str(path))} must be a whole number >= 1, got 0"):
        load_settings(path)


def test_rule_between_settings_is_checked_with_the_final_values(write):
    path = write("config.py", "epochs = (5, 9)")
    assert load_settings(path, ["num_epoch=10"], OwnSettings).epochs == (5, 9)
    with pytest.raises(UserError, match=r"epochs is \(5, 9\), but num_epoch is 9"):
        load_settings(path, ["num_epoch=9"], OwnSettings)


@pytest.mark.parametrize("text", ["lr", "=3", "0.1"])
def test_override_without_key_or_value_is_an_error(write, text):
    with pytest.raises(UserError, match="an override is written key=value"):
        load_settings(write("config.py"), [text])


def test_missing_file_is_an_error_with_the_folder_that_was_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"config not found: no/such.py .*{re.escape(str(tmp_path))}"):
        load_settings("no/such.py")


@pytest.mark.parametrize(("text", "what"), [("a b\n", "SyntaxError"), ("config.lr = undefined\n", "NameError")])
def test_broken_file_is_an_error_with_its_line(tmp_path, text, what):
    path = tmp_path / "broken.py"
    path.write_text(HEAD + "\n" + text)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line 4, cannot be read: {what}"):
        load_settings(path)


def test_file_without_config_missing_base_and_cycle_are_errors(tmp_path, write):
    (tmp_path / "empty.py").write_text("lr = 1\n")
    with pytest.raises(UserError, match="empty.py must assign an EasyDict named `config`"):
        load_settings(tmp_path / "empty.py")
    with pytest.raises(UserError, match=r"child.py names a base that does not exist: .*nowhere.py"):
        load_settings(write("child.py", "base = 'nowhere.py'"))
    write("circle.py", f"base = [{str(tmp_path / 'arc.py')!r}]")
    with pytest.raises(UserError, match="arc.py inherits from itself"):
        load_settings(write("arc.py", f"base = {str(tmp_path / 'circle.py')!r}"))


def test_two_bases_may_share_one(write, tmp_path):
    shared = str(write("shared.py", "lr = 0.2"))
    bases = [str(write(name, f"base = {shared!r}")) for name in ("one.py", "two.py")]
    assert load_settings(write("child.py", f"base = {bases!r}")).lr == 0.2


def test_config_with_every_default_is_the_defaults(write):
    root = Path(__file__).resolve().parents[2]
    settings = load_settings(root / "configs" / "base.py")
    assert asdict(settings) == asdict(Settings()) | {"output": "work_dirs/base"}


def test_help_has_every_key_once_with_default_and_requirement_below_its_heading():
    text = describe(OwnSettings)
    lines = text.splitlines()
    assert [line.split("=")[0].strip() for line in lines if re.match("  \\w", line)] == list(asdict(OwnSettings()))
    assert lines[0] == "Data" and lines[1].startswith("  rec=None  ")
    lr = "  lr=0.1                      for the batch of all ranks as it is: never scaled by itself (a number >= 0)"
    assert lr in lines
    own = lines[lines.index("Own") :]
    assert own[1] == "  ratio=0.3                   r: of what is mixed (a number >= 0 and <= 1)" and len(own) == 7
    assert max(map(len, lines)) <= 120
