"""BCT on the built-in faces, glyphs and ORL."""

from easydict import EasyDict as edict

config = edict()

config.compat_scale = 32.0  # the released 1 leaves the softmax nearly flat: see the README
