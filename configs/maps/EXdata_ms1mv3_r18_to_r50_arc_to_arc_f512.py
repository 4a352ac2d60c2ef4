"""EXdata on MS1M-V3.

The old r18 (ArcFace, D = 512) saw 30 % of the images of every class.
The new r50 (ArcFace) saw all images, without a thought of the old one.
"""

from easydict import EasyDict as edict

config = edict()

config.rec = "datasets/ms1m-retinaface-t1/train"
config.old_model = "work_dirs/f512_r18_arc_data30"
config.new_model = "work_dirs/f512_r50_arc_data100"
