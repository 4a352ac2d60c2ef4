from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/OPclass_ms1mv3_r18_to_r50_softmax_to_arc_f256.py"
