"""The new model on the other part of the glyphs data, compatible with old_model/configs/glyphs.py."""

from easydict import EasyDict as edict

config = edict()

config.base = [
    "configs/scenarios/glyphs.py",
    "methods/advbct/configs/small.py",
]
config.output = "work_dirs/glyphs_advbct"
