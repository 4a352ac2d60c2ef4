"""The new model of the demo: on the other part of the glyphs data, compatible with old_model/configs/glyphs.py."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/scenarios/glyphs.py"
config.output = "work_dirs/glyphs_nccl"
config.temperature = 0.1  # 1 leaves the softmax over the queue nearly flat: see the README
