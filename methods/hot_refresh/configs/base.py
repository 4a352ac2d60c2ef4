"""Hot-refresh's own settings. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# Hot-refresh
config.temperature = 0.01  # tau
config.new_to_new = True  # negatives among new embeddings too; False: the plain contrastive loss
config.hardest_negatives = 0  # negatives of each kind that count, the most alike first (10 in AdvBCT's code); 0: all
