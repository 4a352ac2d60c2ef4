"""Glyphs as landmarks: the old model saw 30 % of the identities, the new one sees all."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs_retrieval.py"
config.rec = "datasets/glyphs/train"
config.old_model = "work_dirs/glyphs_retrieval_old"
