"""The old glyph model saw 30 % of the identities, the new one sees the others."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs.py"
config.rec = "datasets/glyphs/train_part_70_class"
config.old_model = "work_dirs/glyphs_old"
