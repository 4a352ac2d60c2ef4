"""OPclass on MS1M-V3.

The old r18 (softmax, D = 128) saw the first 30 % of the classes.
The new r50 (ArcFace) sees the other 70 % of the classes.
"""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/ms1mv3.py"
config.rec = "datasets/ms1m-retinaface-t1/train_part_70_class"
config.network = "r50"
config.embedding_size = 128
config.old_model = "work_dirs/f128_r18_softmax_class30"
