from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/EXdata_gldv2_resnet18_to_resnet18_softmax_to_softmax_f256.py"
