"""UniBCT on faces, as released."""

from easydict import EasyDict as edict

config = edict()

config.schedule = "step"
config.schedule_epochs = (20, 26, 32)
