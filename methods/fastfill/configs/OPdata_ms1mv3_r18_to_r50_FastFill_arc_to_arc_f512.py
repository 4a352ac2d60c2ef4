from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/OPdata_ms1mv3_r18_to_r50_arc_to_arc_f512.py"
