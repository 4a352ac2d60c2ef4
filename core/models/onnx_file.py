"""An `.onnx` file with all that belongs to it: the files that its weights may lie in, and the fingerprint over them."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message

from core.errors import UserError, explain

__all__ = ["read_onnx_file"]

LOOPS = ("Loop", "Scan", "SequenceMap")
MOST_NODES = 10**6


def read_onnx_file(path: Path) -> tuple[onnx.ModelProto, str, int]:
    """The model, its external data left where it is, and the SHA-256 (hex) over all its files, and their bytes.

    Of a model in one file it is that file's. External data (`model.onnx.data` and the like) follows file by file, in
    the order of the names. Memory: the `.onnx` file and one block. `UserError` if the model cannot be read, might run
    without end, or if a file of its data is missing, too short, or outside the model's folder.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf has more than one kind
        raise UserError(f"cannot load {path}: it is damaged or no ONNX file ({error})") from error
    _require_end(path, model)
    digest = hashlib.sha256()
    total = 0
    try:
        for file in (path, *_data_files(path, model)):
            size = file.stat().st_size
            total += size
            if file != path:
                digest.update(f"\n{size}\n".encode())
            _add_file(digest, file)
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or path}, a file of the model {path}: {explain(error)}"
        ) from error
    return model, digest.hexdigest(), total


def _require_end(path: Path, model: onnx.ModelProto) -> None:
    """`UserError` for a model with loops, or whose functions call each other without end or far too often."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], callers: frozenset[tuple[str, str]]) -> int:
        """How many nodes these are when all functions are written out."""
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type)
            if node.op_type in LOOPS and called not in functions:
                raise UserError(f"{path} has a {node.op_type} operator, which no encoder needs and which may never end")
            if called in callers:
                raise UserError(f"{path} is damaged: its function {node.op_type} calls itself; export it again")
            if called in functions and called not in sizes:
                sizes[called] = size(functions[called].node, callers | {called})
            inner = (graph.node for item in node.attribute for graph in (item.g, *item.graphs))
            total += sizes.get(called, 1) + sum(size(graph, callers) for graph in inner)
            if total > MOST_NODES:
                raise UserError(
                    f"{path} has more than {MOST_NODES} operators, its functions written out: no encoder has"
                )
        return total

    size(model.graph.node, frozenset())
    for function in model.functions:
        size(function.node, frozenset([(function.domain, function.name)]))


def _add_file(digest: "hashlib._Hash", file: Path) -> None:
    with open(file, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)


def _data_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files of the model's external data by name, each long enough and inside the model's folder."""
    needed: dict[str, int] = {}
    for tensor in _external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
        except ValueError as error:
            raise UserError(f"{path} is damaged: the place of {tensor.name!r} in {location!r} is no number") from error
        needed[location] = max(end, needed.get(location, 0))
    folder = path.parent.resolve()
    for location, size in needed.items():
        file = path.parent / location
        target = Path(os.path.realpath(file))  # unlike resolve(), without an error for links that lead in a circle
        if Path(location).is_absolute() or not target.is_relative_to(folder):
            raise UserError(
                f"{path} keeps weights outside its folder, in {location} ({target}), which is not read: copy "
                "the model and its data into one folder"
            )
        if not file.is_file():
            raise UserError(f"{path} keeps weights in {location!r}, which is missing: put that file into {folder}")
        if file.stat().st_size < size:
            raise UserError(
                f"{file} is cut off: the model {path} needs {size} bytes of it and it has {file.stat().st_size}; copy "
                "it again"
            )
    return [path.parent / location for location in sorted(needed)]


def _external_tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """All tensors below `message` that lie in other files: of graphs, attributes, functions, dense or sparse."""
    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts: Iterable[Message] = [value] if isinstance(value, Message) else value
            for part in parts:
                yield from _external_tensors(part)
