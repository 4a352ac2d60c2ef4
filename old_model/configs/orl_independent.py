"""For contrast: the demo's new network on the new part of the orl data, without a thought of the old model."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train_part_70_data"
