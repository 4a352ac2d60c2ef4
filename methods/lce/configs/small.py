"""LCE on the built-in faces, glyphs and ORL."""

from easydict import EasyDict as edict

config = edict()

config.boundary_weight = 10.0  # 1 hardly shows beside ArcFace in so short a training: see the README
config.align_weight = 10.0
