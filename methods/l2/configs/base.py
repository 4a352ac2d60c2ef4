"""L2's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# L2 and weakened L2
config.loss_weight = (1.0, 10.0)  # w_1, w_2: of the classification loss and of the distance to the old embedding
config.threshold = 0.0  # t: distance that costs nothing; 0.2 is weakened L2
