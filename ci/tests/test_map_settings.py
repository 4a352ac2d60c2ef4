"""Settings of programs that fit maps: declared once with those of trainings, without keys that mean nothing here."""

from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import UserError
from core.files import resolve
from core.settings import ForwardMapSettings, MapSettings, MapTrainingSettings, Settings, load_settings
from core.settings.keys import keys_of

OF_A_MODEL = ("model", "network", "mean", "std", "channel_order", "features")
OWN = {"batch_size", "seed", "num_epoch", "warmup_epoch", "lr", "weight_decay", "precision", "resume"}
"""Keys of trainings that have another default or another meaning for maps."""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "map.py"
    path.write_text("config = {}\n")
    return path


@pytest.mark.parametrize("kind", [MapSettings, MapTrainingSettings, ForwardMapSettings])
def test_keys_that_maps_share_with_trainings_are_declared_alike(kind):
    ours, theirs = keys_of(kind), keys_of(Settings)
    shared = (ours.keys() & theirs.keys()) - OWN
    assert {"rec", "image_root", "num_workers", "old_model", "old_mean", "output", "device"} <= shared
    for name in shared:
        assert replace(ours[name], heading="") == replace(theirs[name], heading="")


def test_each_model_has_the_same_keys():
    keys = keys_of(ForwardMapSettings)
    for what in OF_A_MODEL:
        types = {str(keys[f"{which}_{what}"].type) for which in ("old", "new", "side")}
        assert len(types) == 1 and keys[f"new_{what}"].path == keys[f"old_{what}"].path
    told = {f"side_{what}": what for what in OF_A_MODEL}
    *_, side = ForwardMapSettings(**told).models
    assert (side.which, side.path, *[getattr(side, what) for what in OF_A_MODEL[1:]]) == ("side", *OF_A_MODEL)
    assert [argument.which for argument in ForwardMapSettings(old_model="a").models] == ["old", "new"]


def test_unset_output_is_named_after_the_config(config):
    settings = load_settings(config, ["old-model=a", "old_net=r18", "epochs=3"], MapTrainingSettings)
    assert (settings.old_model, settings.old_network, settings.num_epoch) == ("a", "r18", 3)
    assert settings.run_folder == resolve("work_dirs/map")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("margin=0.5", "unknown config key 'margin' in the command line"),
        ("epochs=3", "unknown config key 'epochs'"),
        ("fp16=true", "unknown config key 'fp16'"),
        ("features=here", "unknown config key 'features' .* did you mean 'old_features'"),
        ("new_modle=here", "unknown config key 'new_modle' .* did you mean 'new_model'"),
        ("direction=sideways", "'direction' in the command line must be 'old_to_new' or 'new_to_old' or None"),
        ("batch_size=0", "'batch_size' in the command line must be a whole number >= 1"),
    ],
)
def test_keys_of_trainings_and_misspelt_ones_are_unknown_also_by_their_foreign_names(word, message, config):
    with pytest.raises(UserError, match=message):
        load_settings(config, [word], MapSettings)
