"""The new model on all images of the people, compatible with old_model/configs/orl.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train"
config.old_model = "work_dirs/orl_old"
config.output = "work_dirs/orl_unibct"
config.refine_epochs = (16, 32)
config.edge_softmax = "rows"  # the released "columns" gives plain class means: see the README
config.compat_scale = 32.0  # the released 1 leaves the softmax nearly flat, as in BCT
