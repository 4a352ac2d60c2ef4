"""EXclass on GLDv2-clean.

The old resnet18 (softmax, D = 256) saw 30 % of the classes.
The new resnet18 (softmax) saw all images, without a thought of the old one.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/gldv2/train_clean.txt"
config.image_root = "datasets/gldv2"
config.num_workers = 8
config.old_model = "work_dirs/gldv2_f256_resnet18_softmax_class30"
config.new_model = "work_dirs/gldv2_f256_resnet18_softmax_data100"
