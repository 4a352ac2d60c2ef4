"""OPclass on MS1M-V3.

The old r18 (softmax, D = 256) saw the first 30 % of the classes.
The new r50 (ArcFace) saw the other 70 %, without a thought of the old one.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/ms1m-retinaface-t1/train_part_70_class"
config.old_model = "work_dirs/f256_r18_softmax_class30"
config.new_model = "work_dirs/f256_r50_arc_class70"
