"""Hot-refresh on landmarks, as AdvBCT's benchmark has it."""

from easydict import EasyDict as edict

config = edict()

config.hardest_negatives = 10
