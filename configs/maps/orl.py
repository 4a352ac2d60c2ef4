"""The old ORL model and the new network, trained on all images without a thought of the old one."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/orl/train"
config.old_model = "work_dirs/orl_old"
config.new_model = "work_dirs/orl_independent"
config.num_workers = 0
