"""A network followed by a map, and a base model's embeddings read through a map."""

import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.models.maps import Map
from core.models.maps.vectors import row_blocks

__all__ = ["MappedNetwork", "MappedRows", "Rows"]


class Rows(Protocol):
    """Vectors (N, D): an array, or what reads rows like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def ndim(self) -> int: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102

    def __len__(self) -> int: ...  # noqa: D105

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...  # noqa: D105

    def __array__(self) -> np.ndarray: ...  # noqa: D105


class MappedNetwork(nn.Module):
    """Images (B, 3, H, W) to the map's plain output (B, D_t) of the base network's unit embeddings."""

    def __init__(self, base: nn.Module, mapping: Map):
        super().__init__()
        self.base = base
        self.mapping = copy.deepcopy(mapping.module)  # which may move to another device

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D_t)."""
        return self.map_embeddings(self.base(images))

    def map_embeddings(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, D_s) of the base network, of any length, to (B, D_t)."""
        return self.mapping(normalize(embeddings, dim=1))


class MappedRows:
    """The embeddings (N, D_s) of a base model, mapped when they are read: float32 (N, D_t).

    Memory: what is read, and a block of 2,048 rows. `normalized`: as unit vectors.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, network: MappedNetwork, rows: Rows, size: int, device: torch.device, normalized: bool = False):
        """`size`: D_t; `device`: where the network is."""
        self._network, self._rows, self._device, self._normalized = network, rows, device, normalized
        self.shape = (len(rows), size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        vectors = self._rows[rows]
        flat = vectors.reshape(-1, vectors.shape[-1])
        mapped = np.empty((len(flat), self.shape[1]), np.float32)
        with torch.inference_mode():
            for block in row_blocks(len(flat)):
                units = self._network.map_embeddings(torch.from_numpy(np.array(flat[block])).to(self._device))
                mapped[block] = (normalize(units, dim=1) if self._normalized else units).cpu().numpy()
        return mapped.reshape(*vectors.shape[:-1], self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)
