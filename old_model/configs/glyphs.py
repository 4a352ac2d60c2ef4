"""The old model of the demo: a narrow, shallow network, on the old part of the glyph data."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs.py"
config.rec = "datasets/glyphs/train_part_30_class"
config.network_options = edict(width=16, depth=1)
config.num_epoch = 2
config.output = "work_dirs/glyphs_old"
