"""UniBCT's own settings, as released. All others are in configs/base.py at the root."""

from easydict import EasyDict as edict

config = edict()

# UniBCT
config.refine_epochs = (10, 20)  # epochs, from 0, that begin with a refinement; the first starts L_bct; (): plain means
config.propagation = 0.9  # lambda: how far a weight travels along the edges
config.temperature = 0.05  # tau of the edges
config.edge_softmax = "columns"  # what of the edge matrix sums to 1: "columns" (released; gives plain means) or "rows"
config.compat_scale = 1.0  # s of the classification against the prototypes
config.compat_margin = 0.0  # ArcFace m of the classification against the prototypes, radians
config.old_classes_only = False  # leave out the classes that the old run was not trained on: AdvBCT's benchmark
