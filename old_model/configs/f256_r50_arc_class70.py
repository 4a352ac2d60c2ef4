"""r50 alone on the other 70 % of the classes: the independent new model of OPclass."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/ms1mv3.py"
config.rec = "datasets/ms1m-retinaface-t1/train_part_70_class"
config.network = "r50"
config.embedding_size = 256
config.loss = "arcface"
