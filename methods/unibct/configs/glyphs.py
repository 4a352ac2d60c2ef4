"""The new model of the demo: on the other part of the glyphs data, compatible with old_model/configs/glyphs.py."""

from easydict import EasyDict as edict

config = edict()

config.base = [
    "configs/scenarios/glyphs.py",
    "methods/unibct/configs/small.py",
]
config.output = "work_dirs/glyphs_unibct"
config.refine_epochs = (1, 2)  # of the four epochs, as the released (10, 20) of 35
