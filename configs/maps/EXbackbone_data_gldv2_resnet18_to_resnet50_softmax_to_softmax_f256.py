"""EXbackbone on GLDv2-clean, 30 % of the images of every class.

The old resnet18 (softmax, D = 256) and the new resnet50 (softmax) saw the same images, each on its own.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/gldv2/train_clean_part_30_data.txt"
config.image_root = "datasets/gldv2"
config.num_workers = 8
config.old_model = "work_dirs/gldv2_f256_resnet18_softmax_data30"
config.new_model = "work_dirs/gldv2_f256_resnet50_softmax_data30"
