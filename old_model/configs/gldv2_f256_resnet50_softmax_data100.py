"""Independent model for landmarks ("star" in the compatibility scores): resnet50 alone on all data."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean.txt"
config.network = "resnet50"
