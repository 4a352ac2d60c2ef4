"""Upper bound: r50 alone on all data."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/ms1mv3.py"
config.rec = "datasets/ms1m-retinaface-t1/train"
config.network = "r50"
config.embedding_size = 128
config.loss = "arcface"
