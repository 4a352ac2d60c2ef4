"""Independent model for landmarks ("star" in the scores): resnet50 alone on 30 % of the classes."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean_part_30_class.txt"
config.network = "resnet50"
