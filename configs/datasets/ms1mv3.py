"""MS1M-V3 (ms1m-retinaface, InsightFace's download) with the released optimisation, 8 GPUs with 128 images each."""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/ms1m-retinaface-t1/train"
config.rec_val = "datasets/ms1m-retinaface-t1"
config.num_epoch = 35
config.warmup_epoch = 0
config.lr = 0.1
config.batch_size = 128
config.augment = ("flip",)
