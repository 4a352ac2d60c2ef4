"""NCCL's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# NCCL
config.queue_size = 8192  # Q: old embeddings kept, of all ranks together
config.temperature = 1.0  # tau
config.alpha = 1.0  # weight of the contrast of embeddings
config.beta = 0.01  # weight of the contrast of logits
config.credible_only = False  # use only old embeddings that pass the paper's entropy rule (the release uses all)
