"""The new model on all glyphs, compatible with old_model/configs/glyphs_retrieval.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/scenarios/glyphs_retrieval.py"
config.output = "work_dirs/glyphs_retrieval_nccl"
