"""The old model of the demo: the smaller network, on the old part of the orl data."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train_part_30_class"
config.network_options = edict(width=16, depth=1)
config.output = "work_dirs/orl_old"
