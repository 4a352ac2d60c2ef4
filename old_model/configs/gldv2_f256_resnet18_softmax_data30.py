"""Old model for landmarks on 30 % of the images of every class."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean_part_30_data.txt"
config.network = "resnet18"
config.num_epoch = 10  # like that of the class split; the release names none of this split
