"""The old model's own settings. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# Old model
config.loss = "arcface"  # "arcface", or "softmax": a linear classifier with bias on the embedding as it is
