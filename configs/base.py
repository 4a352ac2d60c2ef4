"""Every setting that the training programs share, with its default.

core/settings/settings.py says what each is for and what values it takes, and so does `train.py --help`.
"""

from dataclasses import asdict

from easydict import EasyDict as edict

from core.settings import Settings

config = edict(asdict(Settings()))
