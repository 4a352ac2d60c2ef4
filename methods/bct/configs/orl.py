"""The new model on all images of the people, compatible with old_model/configs/orl.py."""

from easydict import EasyDict as edict

config = edict()

config.base = [
    "configs/scenarios/orl.py",
    "methods/bct/configs/small.py",
]
config.output = "work_dirs/orl_bct"
