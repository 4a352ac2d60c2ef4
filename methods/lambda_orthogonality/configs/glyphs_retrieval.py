"""From the old model of glyphs as landmarks to the independent one."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/glyphs_retrieval.py"
config.output = "work_dirs/glyphs_retrieval_lambda"
