"""For contrast and as the "star" model: the new network on all glyphs without a thought of the old model."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs_retrieval.py"
config.rec = "datasets/glyphs/train"
