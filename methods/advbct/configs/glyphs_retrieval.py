"""The new model on all glyphs, compatible with old_model/configs/glyphs_retrieval.py."""

from easydict import EasyDict as edict

config = edict()

config.base = [
    "configs/scenarios/glyphs_retrieval.py",
    "methods/advbct/configs/landmarks.py",
]
config.output = "work_dirs/glyphs_retrieval_advbct"
config.old_classes_only = True  # as in EXclass_gldv2_*; nothing changes where the old run saw all classes
