"""The old ORL model saw 30 % of the images of every person, the new one sees all images."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train"
config.old_model = "work_dirs/orl_old"
