"""An `.onnx` file with all that belongs to it: the files that its weights may lie in, and the fingerprint over them."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message

from core.errors import UserError, explain

__all__ = ["read_onnx_file"]


def read_onnx_file(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model, its external data left where it is, and the SHA-256 (hex) over all its files.

    Of a model in one file it is that file's. External data (`model.onnx.data` and the like) follows file by file, in
    the order of the names. Memory: the `.onnx` file and one block. `UserError` if the model cannot be read, or if a
    file of its data is missing, too short, or outside the model's folder.
    """
    try:
        model = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf has more than one kind
        raise UserError(f"cannot load {path}: it is damaged or no ONNX file ({error})") from error
    digest = hashlib.sha256()
    try:
        for file in (path, *_data_files(path, model)):
            if file != path:
                digest.update(f"\n{file.stat().st_size}\n".encode())
            _add_file(digest, file)
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or path}, a file of the model {path}: {explain(error)}"
        ) from error
    return model, digest.hexdigest()


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
        if Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
            raise UserError(
                f"{path} keeps weights outside its folder, in {location} ({file.resolve()}), which is not read: copy "
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
