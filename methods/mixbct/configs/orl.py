"""The new model of the demo: on all images of the people, compatible with old_model/configs/orl.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/orl.py"
config.rec = "datasets/orl/train"
config.old_model = "work_dirs/orl_old"
config.mix_ratio = 0.5  # more than the released 0.3: the head has few steps to find the old embeddings
config.output = "work_dirs/orl_mixbct"
