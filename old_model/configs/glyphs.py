"""The old model of the demo: the smaller network, on the old part of the glyphs data."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs.py"
config.rec = "datasets/glyphs/train_part_30_class"
config.network_options = edict(width=16, depth=1)
config.output = "work_dirs/glyphs_old"
