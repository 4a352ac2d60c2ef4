"""BCT's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# BCT
config.compat_scale = 1.0  # s: of the cosines in the old classifier's softmax
