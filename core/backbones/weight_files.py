"""The tensors in a file of weights, as they lie in its dicts and lists. Nothing that the file asks for is run.

torch.save's two formats are read with `weights_only=True`, safetensors by its library. Checkpoints of training programs
hold more than tensors: options, paths, numbers of NumPy. Where they do, each class or function that the file names is
replaced by a stand-in that drops what it is given, so that the tensors beside it can be read.
"""

import io
import logging
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.backbones.file_kinds import AGAIN, EXPORT, SAFETENSORS, SAVE, TORCH_OLD, TORCH_ZIP, kind_of_file
from core.errors import UserError, explain
from core.pickle_stream import check_pickle

__all__ = ["PICKLED_NETWORK", "holds_pickled_network", "read_weight_file", "tensors_in"]

logger = logging.getLogger(__name__)

OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules of Python 2 by their present names."""
PICKLES_OF_OLD_FORMAT = 5
"""Magic number, version, machine, content, and keys of the tensors' memory."""
PICKLED_NETWORK = "a pickled network, which needs its program to be loaded"
MOST_PICKLE = 1 << 22
"""Bytes of what is beside the tensors' memory: some 150 for each of them."""
MAX_LEVELS = 1000
"""Of containers in containers: Python itself writes none deeper."""
MOST_SHOWN = 8, 1 << 29
"""Times the file's size, and bytes more, that all its tensors may take: some have several names or are expanded."""
DEEPEST = 8
"""Levels of containers that are looked into: pickles can hold themselves."""
MOST_TENSORS = 10**5
"""In one container: pickles can hold one list of tensors in many places."""
LONGEST_NAME = 1000
PROTOCOL = 2
"""Of pickles that `weights_only=True` reads; torch.save's own."""


def read_weight_file(path: str | Path) -> Any:
    """What was saved: dicts, lists, numbers, strings and tensors on the CPU, memory-mapped where the format allows it.

    Other objects are empty dicts or of no use (`_Made`). Tensors take little more memory than the file. `UserError`
    if the file cannot be opened, is damaged, is of a format that is not read (which is named), or holds what cannot be
    read without running it.
    """
    path = Path(path)
    kind = kind_of_file(path)
    if kind == SAFETENSORS:
        return _read_safetensors(path)
    if kind not in (TORCH_ZIP, TORCH_OLD):
        raise UserError(f"cannot read weights from {path}: it is {kind.what}; {kind.advice}")
    try:
        records = _check_records(path) if kind == TORCH_ZIP else None
        _check_pickles(path)
        content = _read_pickled(path, mapped=kind == TORCH_ZIP)
        _check_sizes(tensors_in(content).values(), path.stat().st_size, records)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"cannot read weights from {path}: it holds {_objection(path, str(error))}; {SAVE}, or {EXPORT}"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from error
    except Exception as error:  # a damaged file can fail in any way
        logger.debug("reading %s failed", path, exc_info=True)
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise UserError(f"cannot read weights from {path}: it is damaged ({said}); {AGAIN}") from error
    return content


def _check_records(path: Path) -> Counter[int]:
    """Sizes of the tensors' memory in an archive of torch.save, and how often each is there.

    `ValueError` for records that are not just bytes of the file: compressed, or lying in each other.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size for record in records
    ):
        raise ValueError("its records are compressed, which torch.save does not do")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records are larger than the file")
    return Counter(record.file_size for record in records if "/data/" in record.filename)


def _check_pickles(path: Path) -> None:
    """`ValueError` if a pickle in the file would take the process or the machine down."""
    with ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    if archive.getinfo(name).file_size > MOST_PICKLE:
                        raise ValueError(f"more than {MOST_PICKLE >> 20} MiB of objects beside its tensors")
                    check_pickle(archive.read(name), depth=MAX_LEVELS, shared=True)
        else:
            file = stack.enter_context(open(path, "rb"))
            data, position = file.read(MOST_PICKLE), 0
            for _ in range(PICKLES_OF_OLD_FORMAT):
                position = check_pickle(data, position, depth=MAX_LEVELS, shared=True)


def _check_sizes(tensors: Iterable[Tensor], size: int, records: Counter[int] | None) -> None:
    """`ValueError` if tensors show the numbers in a file of `size` bytes too often, or others than those of a record.

    `records`: sizes of the memory that is in the file, if each tensor's should be one of them.
    """
    plain = [tensor for tensor in tensors if tensor.layout == torch.strided and tensor.device.type == "cpu"]
    shown = 4 * sum(tensor.numel() for tensor in plain)
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in plain}
    if shown > MOST_SHOWN[0] * size + MOST_SHOWN[1]:
        raise ValueError(f"its tensors show the same numbers again and again, {shown} bytes in all as float32")
    if records is not None and Counter(filter(None, memory.values())) - records:
        raise ValueError("the sizes of its tensors are not those of their records")


def tensors_in(
    content: Any, prefix: str = "", depth: int = 0, empty: set[tuple[int, int]] | None = None
) -> dict[str, Tensor]:
    """All tensors in nested dicts and lists, by keys and positions joined with dots.

    `empty` has the containers in which none was found, by depth: files can hold one in many places, again and again.
    `ValueError` for what is no set of weights but unfolds without end.
    """
    if isinstance(content, Tensor):
        return {prefix: content.detach()}
    empty = set() if empty is None else empty
    if not isinstance(content, dict | list | tuple) or depth >= DEEPEST or (id(content), depth) in empty:
        return {}
    found: dict[str, Tensor] = {}
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, Tensor | dict | list | tuple):
            name = f"{prefix}.{key}" if prefix else str(key)
            found |= tensors_in(value, name, depth + 1, empty)
            if len(found) > MOST_TENSORS or len(name) > LONGEST_NAME:
                raise ValueError(f"more than {MOST_TENSORS} tensors, or a name of more than {LONGEST_NAME} letters")
    if not found:
        empty.add((id(content), depth))
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MOST_PICKLE:  # the library takes 60 times as much memory to read it, and ends the process without
            raise ValueError(f"more than {MOST_PICKLE >> 20} MiB of descriptions beside its tensors")
        content = load_file(path)
        tensors_in(content)
        return content
    except (SafetensorError, ValueError) as error:
        raise UserError(f"cannot read weights from {path}: it is damaged ({error}); {AGAIN}") from error


def _read_pickled(path: Path, mapped: bool) -> Any:
    """Plainly; if that fails because of the classes in it, with stand-ins for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.load about files that it then refuses
        try:
            return _load(path, mapped)
        except pickle.UnpicklingError:
            stand_ins = [(_stand_in(name), name) for name in _opcodes(path)[0]]
        with torch.serialization.safe_globals([*stand_ins, (_Made, "core.backbones.weight_files._Made")]):
            try:
                return _load(path, mapped)
            except (TypeError, ValueError, AttributeError) as error:  # a stand-in was given what it does not take
                raise pickle.UnpicklingError(str(error)) from error


def _load(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception:
        # PyTorch checks the sparse tensors of a file once all is read; those of one that failed before would be checked
        # with the next file, which would fail for them: loading anything forgets them
        with suppress(Exception):
            torch.load(io.BytesIO(_NOTHING), weights_only=True)
        raise


def _saved_nothing() -> bytes:
    written = io.BytesIO()
    torch.save({}, written)
    return written.getvalue()


_NOTHING = _saved_nothing()
"""A file of torch.save without tensors."""


class _Made:
    """In place of what a function of the file would have made."""

    def __setstate__(self, state: object) -> None:
        pass


class _StandIn(type):
    """A class of the file, by name only. Called as a function it gives a `_Made`.

    Made without a call, as pickle makes most objects, it is a dict of its items; attributes lie in the dict's own, so
    that `vars` shows them. `torch.load` lets no other class take items.
    """

    def __call__(cls, *args: object) -> _Made:
        return _Made()


def _stand_in(name: str) -> Any:
    if name == "collections.deque":
        return lambda *args: []
    if name == "collections.defaultdict":
        return lambda *args: OrderedDict()
    return _StandIn(name, (), {"__new__": lambda cls, *args: OrderedDict()})


def _opcodes(path: Path) -> tuple[set[str], int]:
    """Names of the classes and functions that the pickles in the file ask for, and their protocol."""
    names, protocol = set(), 0
    with ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            pickles = [stack.enter_context(archive.open(n)) for n in archive.namelist() if n.endswith("data.pkl")]
        else:
            pickles = [stack.enter_context(open(path, "rb"))] * PICKLES_OF_OLD_FORMAT
        for stream in pickles:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    names.add(f"{OLD_NAMES.get(module, module)}.{name}")
                elif opcode.name == "PROTO":
                    protocol = max(protocol, int(str(argument)))
    return names, protocol


def holds_pickled_network(content: Any) -> bool:
    """Whether what `read_weight_file` gave is a pickled `torch.nn.Module`, or a dict with one in it."""
    parts = (content, *content.values()) if isinstance(content, dict) else (content,)
    return any(isinstance(part, OrderedDict) and "_modules" in vars(part) for part in parts)


def _objection(path: Path, message: str) -> str:
    """Why `weights_only=True` refused the file though its classes had stand-ins."""
    names, protocol = _opcodes(path)
    if protocol > PROTOCOL:
        return f"a pickle of protocol {protocol}, which cannot be read safely"
    if "is blocked" in message:
        blocked = [name for name in sorted(names) if name.split(".")[0] in ("sys", "os", "posix", "nt")]
        return f"a call of {', '.join(blocked)}, which no weights need and which is not run"
    if "persistent_load" in message:
        return PICKLED_NETWORK
    foreign = [name for name in sorted(names) if not re.match(r"(torch|collections|builtins)\.", name)]
    return f"objects that cannot be read safely ({', '.join(foreign) or message.splitlines()[-1]})"
