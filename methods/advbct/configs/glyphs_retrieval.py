"""The new model on all glyphs, compatible with old_model/configs/glyphs_retrieval.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs_retrieval.py"
config.rec = "datasets/glyphs/train"
config.old_model = "work_dirs/glyphs_retrieval_old"
config.output = "work_dirs/glyphs_retrieval_advbct"
config.threshold = 1.0
config.p2s_weight = 1.0
config.adv_weight = 1.0
config.old_classes_only = True  # as in EXclass_gldv2_*; nothing changes where the old run saw all classes
