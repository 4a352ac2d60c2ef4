"""The old model of the ORL demo: a shallow network on 30 % of the images of every person, by an older recipe.

It has never seen poor light, noise or an occluder: that is what its service should get better at by the update.
"""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train_part_30_data"
config.network_options = edict(width=8, depth=1)
config.augment = ("flip", "affine")
config.margin_scale = 2.0
config.num_epoch = 30
config.lr = 0.1  # 150 steps in all
config.output = "work_dirs/orl_old"
