"""The feature store: a model's embeddings of a data set's images on disk, one row an image in record order.

A store is a folder with `features.npy` (float32 (N, D), not normalised), `labels.npy` (int64 (N,)) and `store.json`
(`data_fingerprint`, `model_fingerprint`, `num_images`, `embedding_size`, the names of both for people, and
`preprocessing`, the input size and normalisation that the model was given). The fingerprints tie each row to one image
and one model: opening a store against others is an error that names both. Class statistics are kept beside, as arrays
whose names say what they hold.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.data.open_dataset import ImageDataset
from core.errors import UserError

__all__ = ["FeatureStore", "StoreInfo"]


@dataclass(frozen=True)
class StoreInfo:
    """The contents of `store.json`."""

    data_fingerprint: str
    model_fingerprint: str
    num_images: int
    embedding_size: int
    data_name: str
    model_name: str
    preprocessing: str = ""


@dataclass
class FeatureStore:
    """An opened store; `store[rows]` reads rows of features. Arrays are memory-mapped, anew in each process."""

    path: Path
    info: StoreInfo
    _features: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "FeatureStore":
        """Open a finished store; `UserError` if the folder is none, or its files do not fit together."""
        path = Path(path)
        try:
            info = StoreInfo(**json.loads((path / "store.json").read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(f"no feature store in {path} (make one with tools/extract_features.py): {error}") from error
        store = cls(path, info)
        try:
            shapes = store.features.shape, store.labels().shape
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"feature store {path} is damaged: {error}; delete it, extract it again") from error
        if shapes != ((info.num_images, info.embedding_size), (info.num_images,)):
            raise UserError(
                f"feature store {path} is damaged: its arrays are not as store.json says; delete it, extract it again"
            )
        return store

    @property
    def features(self) -> np.ndarray:
        """float32 (N, D), memory-mapped."""
        if self._features is None:
            self._features = np.load(self.path / "features.npy", mmap_mode="r")
        return self._features

    def labels(self) -> np.ndarray:
        """int64 (N,): class of each row, from the data."""
        return np.load(self.path / "labels.npy", mmap_mode="r")

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.features[rows]

    def __getstate__(self) -> dict:
        return {"path": self.path, "info": self.info, "_features": None}

    def require_data(self, data: ImageDataset) -> None:
        """`UserError` unless the store was made from just these images: rows would be joined to other images."""
        if self.info.data_fingerprint != data.fingerprint:
            raise UserError(
                f"feature store {self.path} was made from other data ({self.info.data_name}, {self.info.num_images} "
                f"images, fingerprint {self.info.data_fingerprint[:12]}) than {data.prefix} ({data.num_images} images, "
                f"fingerprint {data.fingerprint[:12]}): extract the features of these images"
            )

    def require_model(self, name: str, fingerprint: str, preprocessing: str) -> None:
        """`UserError` unless the store holds the embeddings of this model, and of images prepared as these are."""
        if self.info.model_fingerprint != fingerprint:
            raise UserError(
                f"feature store {self.path} was made with another model ({self.info.model_name}, fingerprint "
                f"{self.info.model_fingerprint[:12]}) than {name} (fingerprint {fingerprint[:12]}): "
                "extract that model's features"
            )
        if self.info.preprocessing != preprocessing:
            raise UserError(
                f"feature store {self.path} was made with the weights of {name}, but other inputs "
                f"({self.info.preprocessing or 'not known'}; now {preprocessing}): extract the features again elsewhere"
            )
