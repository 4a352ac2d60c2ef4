"""EXclass on GLDv2-clean, extended backbone.

The old resnet18 (softmax, D = 256) saw 30 % of the classes.
The new resnet50 (softmax) sees all images (the list numbers the old classes first).
"""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean_part_100_class.txt"
config.network = "resnet50"
config.old_model = "work_dirs/gldv2_f256_resnet18_softmax_class30"
