"""Classifiers: margins on cosines, and the softmax layer whose classes are sharded over the ranks."""

from core.heads import margins
from core.heads.build import build_head, build_margin
from core.heads.partial_fc import PartialFC

__all__ = ["PartialFC", "build_head", "build_margin", "margins"]
