"""The built-in ORL faces (tools/make_dataset.py orl --out datasets/orl): 28 people, settings for seconds."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/orl/train"
config.network = "r18"
config.network_options = edict(width=16, depth=2)
config.embedding_size = 32
config.augment = ("flip", "affine")
config.num_workers = 0
config.batch_size = 32
config.num_epoch = 50
config.lr = 0.05
config.margin_scale = 8.0
config.margin = 0.0  # scale 16 with margin 0.2 gave a worse cross-test in a trial
