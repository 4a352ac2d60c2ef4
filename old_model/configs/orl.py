"""The old model of the ORL demo: a narrow, shallow network, on the old part of the people."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train_part_30_class"
config.network_options = edict(width=16, depth=1)
config.output = "work_dirs/orl_old"
