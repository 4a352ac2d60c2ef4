"""Maps behind networks, and behind embeddings that are stored."""

import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.models.maps import Map
from core.models.maps.vectors import row_blocks

__all__ = ["MappedRows", "Rows", "UnitMap"]


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


class UnitMap(nn.Module):
    """Embeddings (B, D_s) of any length to the map's plain output (B, D_t) of their unit vectors."""

    def __init__(self, mapping: Map):
        super().__init__()
        self.module = copy.deepcopy(mapping.module)  # which may move to another device

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, D_s) to (B, D_t)."""
        return self.module(normalize(embeddings, dim=1))


class MappedRows:
    """The embeddings (N, D_s) of a base model, mapped when they are read: float32 (N, D_t).

    Memory: what is read, and a block of 2,048 rows. `normalized`: as unit vectors.
    """

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, mapping: nn.Module, rows: Rows, size: int, device: torch.device, normalized: bool = False):
        """`mapping`: a `UnitMap` on `device`; `size`: D_t."""
        self._mapping, self._rows, self._device, self._normalized = mapping, rows, device, normalized
        self.shape = (len(rows), size)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        vectors = self._rows[rows]
        flat = vectors.reshape(-1, vectors.shape[-1])
        mapped = np.empty((len(flat), self.shape[1]), np.float32)
        with torch.inference_mode():
            for block in row_blocks(len(flat)):
                units = self._mapping(torch.from_numpy(np.array(flat[block])).to(self._device))
                mapped[block] = (normalize(units, dim=1) if self._normalized else units).cpu().numpy()
        return mapped.reshape(*vectors.shape[:-1], self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)
