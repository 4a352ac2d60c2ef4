"""The built-in glyphs (tools/make_dataset.py glyphs --out datasets/glyphs) as landmarks: AdvBCT's benchmark, small."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/glyphs/train"
config.network = "resnet18"
config.embedding_size = 128
config.normalization = "imagenet"
config.augment = ("flip",)
config.num_workers = 0
config.batch_size = 64
config.num_epoch = 5
config.schedule_power = 1.0
config.loss = "softmax"
config.classifier_bias = False
config.margin_scale = 30.0
config.margin = 0.3
