"""r50 alone on the other 70 % of the images of every class: the independent new model of OPdata."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/ms1mv3.py"
config.rec = "datasets/ms1m-retinaface-t1/train_part_70_data"
config.network = "r50"
config.embedding_size = 512
config.loss = "arcface"
