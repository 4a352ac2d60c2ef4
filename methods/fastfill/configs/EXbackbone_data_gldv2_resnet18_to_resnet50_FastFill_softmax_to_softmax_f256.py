from easydict import EasyDict as edict

config = edict()

config.base = "configs/maps/EXbackbone_data_gldv2_resnet18_to_resnet50_softmax_to_softmax_f256.py"
