"""Glyphs as landmarks: the old model, and the new network trained on all identities without a thought of it."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/glyphs/train"
config.old_model = "work_dirs/glyphs_retrieval_old"
config.new_model = "work_dirs/glyphs_retrieval_independent"
config.num_workers = 0
