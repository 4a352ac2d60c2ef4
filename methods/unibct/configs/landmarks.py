"""UniBCT on landmarks, as AdvBCT's benchmark has it: no refinement, and a margin."""

from easydict import EasyDict as edict

config = edict()

config.refine_epochs = ()
config.compat_scale = 30.0
config.compat_margin = 0.3
