"""LCE's own settings. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# LCE
config.boundary_weight = 1.0  # of the angles beyond the old boundaries
config.align_weight = 1.0  # of the angles between new class weights and old centres
config.transform_blocks = 0  # K: residual blocks that transform the old space
config.old_classes_only = False  # leave out the classes that the old run was not trained on: AdvBCT's benchmark
