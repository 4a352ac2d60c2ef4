"""BCT on landmarks: the first classes of the training images are those of the old model."""

from easydict import EasyDict as edict

config = edict()

config.old_classifier = "own"
