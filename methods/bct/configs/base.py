"""BCT's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# BCT
config.old_classifier = "means"  # of each class's old embeddings; or the old run's "own", for the data's first classes
config.compat_scale = 1.0  # s: of the cosines with the means
