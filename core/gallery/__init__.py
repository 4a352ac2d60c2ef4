"""A live gallery: vectors by the model that made them, search across models, and the upgrade from one to the next."""

from core.gallery.gallery import Gallery

__all__ = ["Gallery"]
