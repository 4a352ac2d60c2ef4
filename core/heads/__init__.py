"""Classification heads: margins on cosines, and the softmax layer whose classes are sharded over the ranks."""

from core.heads import margins
from core.heads.partial_fc import PartialFC

__all__ = ["PartialFC", "margins"]
