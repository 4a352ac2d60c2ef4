"""MixBCT's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# MixBCT
config.mix_ratio = 0.3  # r: share of a batch whose new embeddings are replaced by the old ones
config.credible_rate = 0.9  # T: share of a class's old embeddings, those nearest to its mean, that may be mixed in
config.scale_dimensions = False  # before distances are measured, scale each dimension to unit norm (the released tool)
