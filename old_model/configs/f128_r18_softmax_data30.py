"""Old model on 30 % of the images of every class."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/ms1mv3.py"
config.rec = "datasets/ms1m-retinaface-t1/train_part_30_data"
config.network = "r18"
config.embedding_size = 128
config.loss = "softmax"
