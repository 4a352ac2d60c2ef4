"""From the old ORL model to the independent one."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/orl.py"
config.output = "work_dirs/orl_lambda"
