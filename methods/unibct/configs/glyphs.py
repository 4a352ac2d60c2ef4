"""The new model of the demo: on the other part of the glyphs data, compatible with old_model/configs/glyphs.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs.py"
config.rec = "datasets/glyphs/train_part_70_class"
config.old_model = "work_dirs/glyphs_old"
config.output = "work_dirs/glyphs_unibct"
config.refine_epochs = (1, 2)  # of the four epochs, as the released (10, 20) of 35
config.edge_softmax = "rows"  # the released "columns" gives plain class means: see the README
config.compat_scale = 32.0  # the released 1 leaves the softmax nearly flat, as in BCT
