"""The embedding store: a model's embeddings of the images of a source on disk, one row an image, in the source's order.

A store is a folder with one array float32 (N, D) for each *view* of the images (`features.npy` for training: the
embeddings as the model gives them, not normalised; evaluation has its own views), `labels.npy` (int64 (N,)) if the
source has labels, and `store.json` (`StoreInfo`). Its fingerprints tie each row to one image and one model: opening a
store for other images or another model is an error that names both. Class statistics are kept beside, as arrays whose
names say what they hold.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from core.arrays import MappedArray, open_array
from core.errors import UserError
from core.files import reading
from core.images.source import ImageSource
from core.json_files import read_json
from core.memory import require_memory
from core.models.encoder import Encoder

__all__ = ["FEATURES", "PARTIAL", "EmbeddingStore", "StoreInfo", "open_arrays"]

AGAIN = "delete it, extract it again"
FEATURES = "features"
"""The view of a training store: the embeddings as the model gives them."""
PARTIAL = ".partial"
"""What follows a store's name as long as it is being made: all files are there, so that the disk has their room."""


@dataclass(frozen=True)
class StoreInfo:
    """The contents of `store.json`; the names are for people."""

    data_fingerprint: str
    model_fingerprint: str
    num_images: int
    embedding_size: int
    data_name: str
    model_name: str
    preprocessing: str = ""
    """Input size, normalisation and channel order that the model was given."""
    views: list[str] = field(default_factory=lambda: [FEATURES])
    labelled: bool = True
    settings: dict[str, object] = field(default_factory=dict)
    """What else the embeddings depend on: how images are aligned or cropped, and to which sizes."""

    def require_sense(self) -> None:
        """`ValueError` unless the numbers are counts, and the views names: they come from a file."""
        counts = (self.num_images, self.embedding_size)
        texts = (self.data_fingerprint, self.model_fingerprint, self.data_name, self.model_name, self.preprocessing)
        views = self.views if isinstance(self.views, list) else [None]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"its numbers of images and of dimensions are {counts}")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("its names and fingerprints are not all text")
        if not all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in views):
            raise ValueError(f"its views are {self.views!r:.100}")

    @classmethod
    def of(
        cls, encoder: Encoder, source: ImageSource, views: Sequence[str], settings: Mapping[str, object]
    ) -> "StoreInfo":
        """Of the store of a model's embeddings of the images of a source."""
        return cls(
            data_fingerprint=source.fingerprint,
            model_fingerprint=encoder.fingerprint,
            num_images=source.num_images,
            embedding_size=encoder.embedding_size,
            data_name=source.name,
            model_name=encoder.name,
            preprocessing=encoder.preprocessing,
            views=list(views),
            labelled=source.labels() is not None,
            settings=dict(settings),
        )


@dataclass
class EmbeddingStore:
    """An opened store; `store[rows]` reads rows of `features`. Arrays are memory-mapped, anew in each process."""

    path: Path
    info: StoreInfo
    _opened: dict[str, MappedArray] | None = field(default=None, repr=False)
    _labels: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "EmbeddingStore":
        """Open a finished store; `UserError` if the folder is none, or its files do not fit together."""
        path = Path(path)
        if path.suffix == PARTIAL and (path / "done.npy").exists():
            raise UserError(f"the extraction to {path} has not ended: repeat its command, it goes on where it was")
        file = path / "store.json"
        try:
            content = read_json(file, "description of a store", AGAIN)
            with reading(file, "description of a store", AGAIN):
                info = StoreInfo(**content)
                info.require_sense()
        except UserError as error:
            raise UserError(
                f"no embedding store in {path} (make one with tools/extract_features.py): {error}"
            ) from error
        try:
            return cls(path, info, open_arrays(path, info))
        except UserError as error:
            said = str(error).removesuffix(f"; {AGAIN}")
            raise UserError(f"embedding store {path} is damaged: {said}; {AGAIN}") from error

    def view(self, name: str) -> np.ndarray:
        """One of `info.views`: float32 (N, D), memory-mapped; `UserError` if the store has others alone."""
        if name not in self.info.views:
            raise UserError(f"embedding store {self.path} has no embeddings called {name}: {AGAIN}")
        return self._arrays[name]

    @property
    def features(self) -> np.ndarray:
        """The embeddings as the model gives them, float32 (N, D), memory-mapped."""
        return self.view(FEATURES)

    def labels(self) -> np.ndarray:
        """int64 (N,): the class of each row; only in the store of a source that has labels. In memory once asked for.

        `UserError` if there are none, if one is negative, or too large to count the classes.
        """
        if "labels" not in self._arrays:
            raise UserError(f"embedding store {self.path} is of images without labels: extract those of a training set")
        if self._labels is None:
            self._labels = np.array(self._arrays["labels"][:])
            if len(self._labels) and self._labels.min() < 0:
                raise UserError(f"embedding store {self.path} is damaged: a label is {self._labels.min()}; {AGAIN}")
            largest = self._labels.max(initial=0)
            require_memory(8 * int(largest), f"a number for each class up to the label {largest} of {self.path}", AGAIN)
        return self._labels

    @property
    def _arrays(self) -> dict[str, MappedArray]:
        if self._opened is None:
            self._opened = open_arrays(self.path, self.info)
        return self._opened

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.features[rows]

    def __getstate__(self) -> dict:
        return {"path": self.path, "info": self.info, "_opened": None, "_labels": None}

    def require(self, wanted: StoreInfo) -> None:
        """`UserError` unless the store holds what `wanted` says: else rows would be joined to other images."""
        info = self.info
        if info.data_fingerprint != wanted.data_fingerprint:
            raise UserError(
                f"embedding store {self.path} was made from other data ({info.data_name}, {info.num_images} images, "
                f"fingerprint {info.data_fingerprint[:12]}) than {wanted.data_name} ({wanted.num_images} images, "
                f"fingerprint {wanted.data_fingerprint[:12]}): extract the embeddings of these images"
            )
        if info.model_fingerprint != wanted.model_fingerprint:
            raise UserError(
                f"embedding store {self.path} was made with another model or preprocessing ({info.model_name}, "
                f"fingerprint {info.model_fingerprint[:12]}, {info.preprocessing or 'preprocessing unknown'}) than "
                f"{wanted.model_name} (fingerprint {wanted.model_fingerprint[:12]}, {wanted.preprocessing}): "
                "name another folder for the embeddings of that model, or delete this one"
            )
        for what in ("preprocessing", "views", "settings"):
            found, expected = getattr(info, what), getattr(wanted, what)
            if found != expected:
                raise UserError(
                    f"embedding store {self.path} was made with the weights of {wanted.model_name}, but other {what} "
                    f"({found or 'unknown'}; now {expected}): name another folder, or delete this one"
                )


def open_arrays(folder: Path, info: StoreInfo, mode: Literal["r", "r+"] = "r") -> dict[str, MappedArray]:
    """The memory-mapped arrays of a store: its views and, if it has them, `labels`.

    `UserError` for one that is missing, damaged or not as `info` says.
    """
    shape = (info.num_images, info.embedding_size)
    expected: dict[str, tuple[tuple[int, ...], type]] = {view: (shape, np.float32) for view in info.views}
    if info.labelled:
        expected["labels"] = (shape[:1], np.int64)
    arrays: dict[str, MappedArray] = {}
    for name, (array_shape, dtype) in expected.items():
        array = arrays[name] = open_array(folder / f"{name}.npy", "array of a store", AGAIN, mode)
        if (array.shape, array.dtype) != (array_shape, dtype):
            raise UserError(
                f"{name}.npy holds {array.dtype} {array.shape}, not {np.dtype(dtype)} {array_shape} as store.json says"
            )
    return arrays
