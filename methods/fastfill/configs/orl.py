"""From the old ORL model to the independent one."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/orl.py"
config.hidden = 256  # enough for so few pairs, and a matter of a minute on a CPU
config.output = "work_dirs/orl_fastfill"
