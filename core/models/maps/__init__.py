"""Maps between the embedding spaces of two models, fitted on embeddings of the same images by both (pairs).

`fit_map(kind, source, target)` fits a `Map`; `load_map` reads one from its run folder.
"""

from core.models.maps.fit import fit_map
from core.models.maps.map import Map, load_map
from core.models.maps.vectors import Space

__all__ = ["Map", "Space", "fit_map", "load_map"]
