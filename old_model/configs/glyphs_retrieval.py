"""The old model of the retrieval benchmark on glyphs: 30 % of the identities."""

from easydict import EasyDict as edict

config = edict()

config.base = "configs/datasets/glyphs_retrieval.py"
config.rec = "datasets/glyphs/train_part_30_class"
config.num_epoch = 4
config.output = "work_dirs/glyphs_retrieval_old"
