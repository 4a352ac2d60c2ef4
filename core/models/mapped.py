"""Maps behind networks and behind embeddings that are stored, and side information beside either."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from core.images.preprocessing import Preprocessing
from core.images.transforms import Triple
from core.models.maps import Map
from core.models.maps.vectors import row_blocks

__all__ = ["JoinedNetworks", "JoinedRows", "MappedRows", "Rows", "UnitMap"]


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


class JoinedNetworks(nn.Module):
    """Images to the embeddings by two networks, each as a unit vector, one behind the other: (B, D_1 + D_2).

    The images (B, 3, H, W) are normalised for the first network; the second one is given them as it takes them.
    """

    mean: Tensor
    std: Tensor
    second_mean: Tensor
    second_std: Tensor

    def __init__(self, first: nn.Module, second: nn.Module, fed: Preprocessing, fed_second: Preprocessing):
        """`fed`, `fed_second`: what the first network takes, and the second one."""
        super().__init__()
        self.first, self.second = first, second
        self.same, self.turned = fed == fed_second, fed.channel_order != fed_second.channel_order
        for prefix, numbers in (("", fed), ("second_", fed_second)):
            self.register_buffer(f"{prefix}mean", _by_channel(numbers.mean))
            self.register_buffer(f"{prefix}std", _by_channel(numbers.std))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D_1 + D_2)."""
        both = self.first(images), self.second(images if self.same else self._for_second(images))
        return torch.cat([normalize(embeddings, dim=1) for embeddings in both], dim=1)

    def _for_second(self, images: Tensor) -> Tensor:
        pixels = (images * self.std + self.mean).round()  # without it 127 may be 126.99, and 126 where uint8 is taken
        pixels = pixels.flip(1) if self.turned else pixels
        return (pixels - self.second_mean) / self.second_std


def _by_channel(numbers: Triple) -> Tensor:
    """float32 (3, 1, 1)."""
    return torch.tensor(numbers, dtype=torch.float32).view(3, 1, 1)


class _ComputedRows(ABC):
    """float32 (N, D), computed when they are read."""

    dtype, ndim = np.dtype(np.float32), 2

    def __init__(self, count: int, size: int):
        self.shape = (count, size)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: Any, /) -> np.ndarray: ...  # noqa: D105

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


class JoinedRows(_ComputedRows):
    """The embeddings (N, D_1), (N, D_2) by two models, joined as `JoinedNetworks` does: float32 (N, D_1 + D_2).

    Memory: what is read.
    """

    def __init__(self, first: Rows, second: Rows):
        super().__init__(len(first), first.shape[1] + second.shape[1])
        self._both = first, second

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        units = [normalize(torch.from_numpy(np.array(part[rows])), dim=-1) for part in self._both]
        return torch.cat(units, dim=-1).numpy()


class MappedRows(_ComputedRows):
    """The vectors (N, D_s) that a map takes, mapped when they are read: float32 (N, D_t).

    Memory: what is read, and a block of 2,048 rows. `normalized`: as unit vectors.
    """

    def __init__(self, mapping: nn.Module, rows: Rows, size: int, device: torch.device, normalized: bool = False):
        """`mapping`: a `UnitMap` on `device`; `size`: D_t."""
        super().__init__(len(rows), size)
        self._mapping, self._rows, self._device, self._normalized = mapping, rows, device, normalized

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        vectors = self._rows[rows]
        flat = vectors.reshape(-1, vectors.shape[-1])
        mapped = np.empty((len(flat), self.shape[1]), np.float32)
        with torch.inference_mode():
            for block in row_blocks(len(flat)):
                units = self._mapping(torch.from_numpy(np.array(flat[block])).to(self._device))
                mapped[block] = (normalize(units, dim=1) if self._normalized else units).cpu().numpy()
        return mapped.reshape(*vectors.shape[:-1], self.shape[1])
