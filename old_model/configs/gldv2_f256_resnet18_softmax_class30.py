"""Old model for landmarks on 30 % of the classes."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean_part_30_class.txt"
config.network = "resnet18"
config.num_epoch = 10  # the released old model is the checkpoint of that epoch; the schedule is the same until then
