"""Weakened L2: small distances to the old embedding cost nothing."""

from easydict import EasyDict as edict

config = edict()

config.threshold = 0.2
