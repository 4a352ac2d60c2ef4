"""EXdata on GLDv2-clean, extended backbone.

The old resnet18 (softmax, D = 256) saw 30 % of the images of every class.
The new resnet50 (softmax) sees all images.
"""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean.txt"
config.network = "resnet50"
config.old_model = "work_dirs/gldv2_f256_resnet18_softmax_data30"
