"""AdvBCT's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# AdvBCT
config.threshold = 0.4  # theta: what the elastic radii may grow or shrink to
config.p2s_weight = 4.0  # lambda_p: of the distances beyond the elastic radii
config.adv_weight = 4.0  # lambda_a: of the discriminator's loss
config.old_classes_only = False  # L_p2s without the classes that the old run was not trained on: landmarks
