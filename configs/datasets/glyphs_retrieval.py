"""The built-in glyphs (tools/make_dataset.py glyphs --out datasets/glyphs) as landmarks: AdvBCT's benchmark, small.

Heads and losses are those for landmarks; the network is a narrow IResNet. A resnet18, whose first layers reduce 32
pixels to 8, needs more steps than a benchmark of minutes has: an old model of 114 steps had a mAP (Medium) of 3.8.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/glyphs/train"
config.network = "r18"
config.network_options = edict(width=16, depth=1)
config.embedding_size = 128
config.normalization = "imagenet"
config.augment = ("flip",)
config.num_workers = 0
config.precision = "fp32"  # whatever the processor: the figures that are published were measured so
config.batch_size = 64
config.num_epoch = 3
config.schedule_power = 1.0
config.loss = "softmax"
config.classifier_bias = False
config.margin_scale = 30.0
config.margin = 0.3
