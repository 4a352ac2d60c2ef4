"""LCE's own settings. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# LCE
config.transform_blocks = 0  # K: residual blocks that transform the old space
