from easydict import EasyDict as edict

config = edict()

config.base = "configs/scenarios/EXbackbone_class_gldv2_resnet18_to_resnet50_softmax_to_softmax_f256.py"
config.threshold = 1.0
config.p2s_weight = 1.0
config.adv_weight = 1.0
