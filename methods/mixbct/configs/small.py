"""MixBCT on the built-in faces, glyphs and ORL."""

from easydict import EasyDict as edict

config = edict()

config.mix_ratio = 0.5  # more than the released 0.3: the head has few steps to find the old embeddings
