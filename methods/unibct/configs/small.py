"""UniBCT on the built-in faces, glyphs and ORL."""

from easydict import EasyDict as edict

config = edict()

config.edge_softmax = "rows"  # the released "columns" gives plain class means: see the README
config.compat_scale = 32.0  # the released 1 leaves the softmax nearly flat, as in BCT
