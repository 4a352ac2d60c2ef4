"""From the demo's old model to the independent one."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/glyphs.py"
config.output = "work_dirs/glyphs_ridge"
