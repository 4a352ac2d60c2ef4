"""The settings of the training programs: every key once, and the config files that give the keys their values."""

from core.settings.config_files import load_settings, split_arguments
from core.settings.keys import describe, key, key_of
from core.settings.map_settings import ForwardMapSettings, MapSettings, MapTrainingSettings
from core.settings.settings import ProgramSettings, Settings

__all__ = [
    "ForwardMapSettings",
    "MapSettings",
    "MapTrainingSettings",
    "ProgramSettings",
    "Settings",
    "describe",
    "key",
    "key_of",
    "load_settings",
    "split_arguments",
]
