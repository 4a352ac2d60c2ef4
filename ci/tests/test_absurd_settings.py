"""Numbers and texts in config files and overrides that no program can use: one line that names the key."""

import pytest
from limited_child import outcome

from core.errors import UserError
from core.settings import load_settings

HUGE = "9" * 400
ENDLESS = "9" * 5000
ABSURD = [
    "lr=1e999", "lr=-1e999", "lr=nan", "lr=inf", f"lr={HUGE}", f"lr={ENDLESS}", "lr=10**400", f"lr={'9' * 309}%",
    "lr=1j", f"seed={2**70}", f"batch_size={2**63}", "batch_size=1e400", "num_epoch=1e300", f"num_epoch={ENDLESS}",
    "verbose=1e19", "embedding_size=1e18", "image_size=1e6", f"num_workers={2**64}", "margin=nan", "clip_norm=inf",
    "resume=1e999", "schedule_epochs=[1e999]", f"schedule_epochs=(1,{HUGE})", "old_mean=1e999",
    f"old_std=({HUGE},1,1)", "sample_rate=1e-400", f"num_classes={2**63}", "lr=" + "[" * 9000,
    "lr=" + "-" * 9000 + "1", "lr=" + "not " * 2400 + "1", "lr=" + "1+" * 4900 + "1",
    "lr=" + "(" * 150 + "1e999" + ")" * 150, "lr='" + "\\N{" * 3000, "network_options={1:" * 300, "rec=\0",
    "lr={[1]}",
]  # fmt: skip
LONG = ["rec=" + "[" * 100_000, "rec=" + "x" * 10_000_000, "lr=" + "1" * 10_000_000, "x" * 1_000_000 + "=1"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("from easydict import EasyDict\n\nconfig = EasyDict()\n")
    return path


@pytest.mark.parametrize("override", ABSURD, ids=lambda text: text[:30].replace("\0", "NUL"))
def test_absurd_override_is_one_short_line_with_its_key(config, override):
    error = outcome(lambda: load_settings(config, [override]), seconds=20)
    assert isinstance(error, UserError), error
    key = override.partition("=")[0]
    assert f"config key '{key}' in the command line must be " in str(error) and len(str(error)) < 500


@pytest.mark.parametrize("override", LONG, ids=lambda text: text[:5])
def test_override_of_megabytes_is_refused_unread(config, override):
    error = outcome(lambda: load_settings(config, [override]), seconds=20)
    assert isinstance(error, UserError) and f"has {len(override)} characters" in str(error) and len(str(error)) < 300


@pytest.mark.parametrize(
    "value", ["10**400", "10**5000", "-(10**5000)", "1e999", "float('nan')", "[10**5000]", "2**63", "[[]] * 100000"]
)
@pytest.mark.parametrize("key", ["lr", "batch_size", "schedule_epochs", "old_mean", "num_classes"])
def test_absurd_value_in_a_config_file_is_told_likewise(config, key, value):
    config.write_text(f"from easydict import EasyDict\n\nconfig = EasyDict()\nconfig['{key}'] = {value}\n")
    if (key, value) in (("lr", "2**63"), ("old_mean", "2**63"), ("schedule_epochs", "2**63")):
        return  # as a float it is a number like others
    with pytest.raises(UserError) as caught:
        load_settings(config)
    assert f"config key {key!r}" in str(caught.value) and len(str(caught.value)) < 600


def test_largest_numbers_that_are_usable_are_read(config):
    settings = load_settings(config, [f"verbose={2**63 - 1}", "lr=1e308", "seed=4294967295", "weight_decay=5e-324"])
    assert (settings.verbose, settings.lr, settings.seed, settings.weight_decay) == (
        2**63 - 1,
        1e308,
        2**32 - 1,
        5e-324,
    )
    assert load_settings(config, ["rec=" + "x" * 9000]).rec == "x" * 9000
