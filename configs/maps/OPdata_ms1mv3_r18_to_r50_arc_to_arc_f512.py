"""OPdata on MS1M-V3.

The old r18 (ArcFace, D = 512) saw 30 % of the images of every class.
The new r50 (ArcFace) saw the other 70 % of the images of every class, without a thought of the old one.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/ms1m-retinaface-t1/train_part_70_data"
config.old_model = "work_dirs/f512_r18_arc_data30"
config.new_model = "work_dirs/f512_r50_arc_data70"
