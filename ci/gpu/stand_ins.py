"""What stands in for packages that are not installed, so that the modules which import them can be imported.

`core` needs OpenCV, faiss, polars and more for work that a check of the GPU does not do. A missing package becomes a
module whose names can be imported and subclassed; calling one raises `MissingPackageError` with the package's name.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGES = (
    "cv2", "easydict", "faiss", "google", "jinja2", "matplotlib", "milvus_lite", "onnx", "onnxruntime", "onnxscript",
    "PIL", "polars", "pyarrow", "pymilvus", "safetensors", "simplejpeg", "sklearn", "tensorboard", "threadpoolctl",
    "tqdm",
)  # fmt: skip
"""All that `core` imports beside torch, torchvision and numpy."""


class MissingPackageError(Exception):
    """Work that needs a package which is not there."""


class _Name(type):
    """A name of a missing package: what it is made of are names too."""

    def __getattr__(cls, name: str) -> "_Name":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {"package": cls.package})

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        raise MissingPackageError(cls.package)


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {"package": self.__name__.partition(".")[0]})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        module.__version__ = "99.0"  # of TensorBoard at least 1.15 is asked for
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is in it."""


def is_missing(package: str) -> bool:
    """True if the package is not installed, with a stand-in or without."""
    return isinstance(sys.modules.get(package), _StandIn) or importlib.util.find_spec(package) is None


def stand_in(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Put stand-ins in the place of those of `packages` that are not installed; returns their names."""
    missing = [package for package in packages if is_missing(package)]
    if missing:
        sys.meta_path.insert(0, _Finder(missing))
    return missing
