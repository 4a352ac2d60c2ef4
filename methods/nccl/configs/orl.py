"""The new model on all images of the people, compatible with old_model/configs/orl.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train"
config.old_model = "work_dirs/orl_old"
config.output = "work_dirs/orl_nccl"
