"""The models of the demo: the old one, and one trained on the new part of the glyphs without a thought of the old."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/glyphs/train_part_70_class"
config.old_model = "work_dirs/glyphs_old"
config.new_model = "work_dirs/glyphs_independent"
config.num_workers = 0
