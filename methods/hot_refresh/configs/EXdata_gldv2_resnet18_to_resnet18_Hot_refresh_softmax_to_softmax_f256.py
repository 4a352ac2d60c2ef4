from easydict import EasyDict as edict

config = edict()

config.base = [
    "configs/scenarios/EXdata_gldv2_resnet18_to_resnet18_softmax_to_softmax_f256.py",
    "methods/hot_refresh/configs/landmarks.py",
]
