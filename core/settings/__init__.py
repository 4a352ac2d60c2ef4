"""The settings of the training programs: every key once, and the config files that give the keys their values."""

from core.settings.config_files import load_settings, split_arguments
from core.settings.keys import describe, key
from core.settings.settings import Settings

__all__ = ["Settings", "describe", "key", "load_settings", "split_arguments"]
