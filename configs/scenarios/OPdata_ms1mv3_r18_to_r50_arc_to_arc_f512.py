"""OPdata on MS1M-V3.

The old r18 (ArcFace, D = 512) saw 30 % of the images of every class.
The new r50 (ArcFace) sees the other 70 % of the images of every class.
"""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/ms1mv3.py"
config.rec = "datasets/ms1m-retinaface-t1/train_part_70_data"
config.network = "r50"
config.embedding_size = 512
config.old_model = "work_dirs/f512_r18_arc_data30"
