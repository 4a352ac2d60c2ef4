"""From the old model of glyphs as landmarks to the independent one."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/glyphs_retrieval.py"
config.hidden = 256  # enough for so few pairs, and a matter of a minute on a CPU
config.output = "work_dirs/glyphs_retrieval_fct"
