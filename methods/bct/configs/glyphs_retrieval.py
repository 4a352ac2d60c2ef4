"""The new model on all glyphs, compatible with old_model/configs/glyphs_retrieval.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/scenarios/glyphs_retrieval.py"
config.output = "work_dirs/glyphs_retrieval_bct"
config.old_classifier = "own"  # where the first classes of rec are the old ones; "means" elsewhere
