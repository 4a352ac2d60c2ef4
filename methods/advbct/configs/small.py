"""AdvBCT on the built-in faces, glyphs and ORL."""

from easydict import EasyDict as edict

config = edict()

config.p2s_weight = 20.0  # the released 4 hardly shows beside ArcFace in so short a training: see the README
