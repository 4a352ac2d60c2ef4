"""The built-in glyphs (tools/make_dataset.py glyphs --out datasets/glyphs): settings for minutes on a laptop."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/glyphs/train"
config.network = "r18"
config.network_options = edict(width=16, depth=2)
config.embedding_size = 128
config.augment = ("flip",)  # the images are corrupted enough for so few epochs
config.num_workers = 0
config.precision = "fp32"  # whatever the processor: the figures that are published were measured so
config.batch_size = 64
config.num_epoch = 4
config.schedule_power = 1.0  # in so few epochs a steeper decay leaves too few steps that still learn
config.margin_scale = 16.0
config.margin = 0.0  # trained on so few steps, a margin and scale 32 gave a worse cross-test
