"""Checkpoints with torch.distributed.checkpoint: everything a run needs to resume, on any number of ranks.

A checkpoint is a folder `checkpoints/step_<n>` that gets this name only when it is complete. It holds tensors in
torch's distributed format, the method's shards as row-sharded DTensors, so that another number of ranks can load them,
and `position.json` with the position in the training. States of random number generators are kept by rank and device;
ranks and devices that the saved run did not have are seeded from the config's seed and the step.
"""

import io
import json
import logging
import os
import pickle
import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from core.engine.method import Method
from core.errors import UserError
from core.files import reading
from core.json_files import read_json
from core.outputs import make_folder, remove, replaced_atomically, sweep, writing
from core.parallel.collectives import broadcast_object
from core.parallel.ranks import Ranks
from core.pickle_stream import check_pickle

__all__ = ["Position", "TrainingState", "latest_checkpoint", "read_position", "remove_leftovers"]

logger = logging.getLogger(__name__)
KEPT = 2
OVERHEAD = 1500
"""Bytes of a tensor in a file beside its numbers."""
DEEPEST, MOST_KEYS = 20, 10**6
"""Levels of containers in the description of a checkpoint, and values that the names of its tensors are made of."""
DESCRIBING = re.compile(
    r"torch\.(Size|strided|[a-z]*float[0-9a-z_]*|u?int\d+|bool|complex\d+)|torch\.serialization\._get_layout"
    r"|torch\.distributed\.checkpoint\.metadata\.(\w*Metadata|MetadataIndex|TensorProperties|_MEM_FORMAT_ENCODING"
    r"|StorageMeta)|torch\.distributed\.checkpoint\.filesystem\._StorageInfo|pathlib(\._local)?\.\w*Path"
    r"|collections\.OrderedDict"
)
"""Names in it: all that the classes of a checkpoint's description need."""
NAME = re.compile(r"step_\d+")


@dataclass(frozen=True)
class Position:
    """Where in the training a checkpoint was taken."""

    step: int
    epoch: int
    images_in_epoch: int
    """Images of the current epoch that all ranks together have used."""
    world_size: int
    identity: dict[str, Any]
    """What a resumed run must have in common with the saved one, by name."""
    scaler: dict[str, Any]
    """State of the loss scaler of fp16; empty without one."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step in `folder`, or None."""
    found = [path for path in _checkpoints(folder) if (path / "position.json").exists()]
    return found[-1] if found else None


def _checkpoints(folder: Path) -> list[Path]:
    """The folders with a checkpoint's name in `folder`, by step. Anything else there is ignored."""
    names = os.listdir(folder) if folder.exists() else []  # unlike glob, an error where it may not be read
    return sorted((folder / name for name in names if NAME.fullmatch(name)), key=_step)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left in `folder`, and all checkpoints but the last two; a kill leaves whole ones."""
    sweep(folder)
    for old in _checkpoints(folder)[:-KEPT]:
        remove(old)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def read_position(path: Path) -> Position:
    """The position saved in a checkpoint; `UserError` if it cannot be read."""
    remedy = "delete the checkpoint's folder to resume from the one before"
    file = path / "position.json"
    content = read_json(file, "position of a checkpoint", remedy)
    with reading(file, "position of a checkpoint", remedy):
        position = Position(**content)
        for key, kind in get_type_hints(Position).items():
            if not isinstance(getattr(position, key), get_origin(kind) or kind):
                raise TypeError(f"its {key} is {getattr(position, key)!r}"[:200])
        return position


class TrainingState:
    """The tensors of a training: backbone, method, optimiser and random number generators."""

    def __init__(self, backbone: nn.Module, method: Method, optimizer: Optimizer, ranks: Ranks):
        self.backbone, self.method = backbone, method
        self.optimizer, self.ranks = optimizer, ranks
        self.mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))

    def room(self, saves: int) -> int:
        """The most bytes that the files of a run take while it saves this state so many times, its model each time.

        Between two and three checkpoints: a new one is whole before an old one goes. The model and the classifier are
        written as often, and no larger than the tensors without the optimiser's.
        """
        sizes = {name: tensor.numel() * tensor.element_size() + OVERHEAD for name, tensor in self._tensors().items()}
        whole = sum(sizes.values())
        weights = sum(size for name, size in sizes.items() if not name.startswith("optimizer."))
        return max(
            min(saves, KEPT + 1) * whole + min(saves, 1) * weights,
            min(saves, KEPT) * whole + min(saves, 2) * weights,
        )

    def save(self, folder: Path, position: Position) -> Path:
        """Write `folder/step_<n>`, completely or not at all, and remove all but the last two. Collective."""
        path = temporary = folder / f"step_{position.step}"
        with ExitStack() as stack:
            stack.enter_context(writing(path, path.with_name(f".{path.name}.")))
            if self.ranks.is_first:
                make_folder(folder)
                temporary = stack.enter_context(replaced_atomically(path))
                temporary.mkdir()
            self._write(broadcast_object(temporary), position)
        if self.ranks.is_first:
            remove_leftovers(folder)  # the new one outlives a loss of power by now
        distributed.barrier()
        return path

    def _write(self, folder: Path, position: Position) -> None:
        """Write all files of a checkpoint to an empty folder. Collective. Errors are those of the disk."""
        state = self._tensors() | {f"random.{self.ranks.rank}.{k}": v for k, v in _random_state(self.ranks).items()}
        try:
            dcp.save(state, checkpoint_id=folder)
        except dcp.CheckpointException as error:  # on every rank
            raise _cause(error) from error
        if self.ranks.is_first:
            (folder / "position.json").write_text(json.dumps(asdict(position), indent=2) + "\n")

    def load(self, path: Path, position: Position, seed: int) -> None:
        """Read a checkpoint into the present tensors, shards for the present number of ranks. Collective."""
        state = self._tensors()
        random = {f"random.{self.ranks.rank}.{k}": v for k, v in _random_state(self.ranks).items()}
        try:
            saved = _Reader(path).read_metadata().state_dict_metadata
            random = {name: value for name, value in random.items() if name in saved}
            dcp.load(state | random, storage_reader=_Reader(path))
        except (Exception, dcp.CheckpointException) as error:  # the latter is not an Exception; it holds tracebacks
            cause = _cause(error) if isinstance(error, dcp.CheckpointException) else error
            if isinstance(cause, PermissionError):
                raise cause from error
            raise UserError(
                f"checkpoint {path} cannot be read ({type(cause).__name__} {cause}): delete it to resume from the one "
                "before, or start over with resume=false"
            ) from error
        torch.manual_seed(seed + 7919 * position.step + self.ranks.rank)
        _set_random_state(self.ranks, {key.rpartition(".")[2]: value for key, value in random.items()})

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors by name; shards as DTensors that share the memory of the parameters."""
        tensors: dict[str, Tensor] = {}
        named: dict[Tensor, str] = {}
        sharded: dict[Tensor, int] = {**self.method.sharded_parameters()}
        for side, module in (("backbone", self.backbone), ("method", self.method)):
            for name, tensor in module.state_dict(keep_vars=True).items():
                tensors[f"{side}.{name}"] = self._whole(tensor, sharded.get(tensor))
            named |= {parameter: f"{side}.{name}" for name, parameter in module.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    num_rows = sharded.get(parameter) if value.shape == parameter.shape else None
                    tensors[f"optimizer.{named[parameter]}.{key}"] = self._whole(value, num_rows)
        return tensors

    def _whole(self, tensor: Tensor, num_rows: int | None) -> Tensor:
        """`tensor` itself, or the DTensor of `num_rows` rows on all ranks of which it is this rank's shard."""
        tensor = tensor.detach()
        if num_rows is None:
            return tensor
        shape = torch.Size((num_rows, *tensor.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(tensor, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


class _Reader(dcp.FileSystemReader):
    """Reads the description of a checkpoint without running what it names, which the class that it comes from would."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        data = Path(self._get_metadata_path(kwargs.get("rank"))).read_bytes()
        check_pickle(data, depth=DEEPEST, chosen_keys=MOST_KEYS)
        metadata = _MetadataUnpickler(io.BytesIO(data)).load()
        if not isinstance(metadata, Metadata):
            raise TypeError("its .metadata describes no checkpoint")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not DESCRIBING.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"its .metadata asks to build {module}.{name}, which is not run")
        return super().find_class(module, name)


def _cause(error: dcp.CheckpointException) -> BaseException:
    """What failed on the first of the ranks on which something did."""
    return next(iter(error.failures.values()))[0]


def _random_state(ranks: Ranks) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if ranks.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(ranks.device)
    return state


def _set_random_state(ranks: Ranks, state: dict[str, Tensor]) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], ranks.device)
