"""EXbackbone on GLDv2-clean, 30 % of the images of every class.

The old resnet18 (softmax, D = 256) and the new resnet50 (softmax) see the same images.
"""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/gldv2.py"
config.rec = "datasets/gldv2/train_clean_part_30_data.txt"
config.network = "resnet50"
config.old_model = "work_dirs/gldv2_f256_resnet18_softmax_data30"
