"""For contrast: the demo's new network on all images of the training people, without a thought of the old model."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train"
