"""AdvBCT on landmarks, as released."""

from easydict import EasyDict as edict

config = edict()

config.threshold = 1.0
config.p2s_weight = 1.0
config.adv_weight = 1.0
