"""For contrast: the demo's new network on the new part of the glyphs data, without a thought of the old model."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs.py"
config.rec = "datasets/glyphs/train_part_70_class"
