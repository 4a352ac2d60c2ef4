"""What a file is, by its first bytes: formats of weights that are read, and others that people have in their place."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError, explain
from core.files import reading, require_file

__all__ = [
    "AGAIN", "EXPORT", "ONNX", "SAFETENSORS", "SAVE", "TORCH_OLD", "TORCH_ZIP", "FileKind", "kind_of_file",
    "require_onnx",
]  # fmt: skip

EXPORT = "export the network to ONNX and give the .onnx file"
SAVE = "save its weights alone with torch.save(model.state_dict(), 'weights.pt')"
AGAIN = "get it again"
HEAD = 4096
"""Bytes that are looked at."""


@dataclass(frozen=True)
class FileKind:
    """A format, and what to do where its files cannot be used."""

    what: str
    """With its article, for a sentence: "a TorchScript program"."""
    advice: str


TORCH_ZIP = FileKind("a file of torch.save", "rename it to .pt, and name its network")
TORCH_OLD = FileKind("a file of torch.save from before PyTorch 1.6", TORCH_ZIP.advice)
SAFETENSORS = FileKind("a safetensors file", "rename it to .safetensors, and name its network")
ONNX = FileKind("an ONNX model", "rename it to .onnx")
TEXT = FileKind("a text file", f"{SAVE}, or {EXPORT}")
UNKNOWN = FileKind("of no format that is known here", TEXT.advice)

BEGINNINGS: list[tuple[bytes, FileKind]] = [
    # torch.save's magic number as a pickle, by the two protocols that it was written with
    (rb"\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", TORCH_OLD),
    (rb".{3}[\x00-\x0f]\x00{4}\{", SAFETENSORS),
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42\x72]", ONNX),
    (rb"\x89HDF\r\n\x1a\n", FileKind("an HDF5 file, as Keras writes it", EXPORT)),
    (rb".{4}TFL3", FileKind("a TensorFlow Lite model", EXPORT)),
    (rb"\x12\x01\x00{6}", FileKind("a file of parameters of MXNet", EXPORT)),
    (rb"version https://git-lfs", FileKind("a pointer of Git LFS, not the file itself", "run git lfs pull")),
    (rb"(?s)\s*<(?=.*(?i:html))", FileKind("a web page", "download the file itself, not the page that shows it")),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", FileKind("a compressed archive", "unpack it and give the file in it")),
    (rb"GGUF", FileKind("a GGUF file", EXPORT)),
    (rb"\x93NUMPY", FileKind("a NumPy array", EXPORT)),
    (rb"\x80[\x00-\x05]", FileKind("a Python pickle that torch.save did not write", f"{SAVE}, or {EXPORT}")),
    (rb"\x00+\Z", FileKind("a file of zeros, as a broken download leaves it", AGAIN)),
]
ARCHIVES: list[tuple[str, FileKind]] = [
    (
        r"(^|/)(constants\.pkl|code/.*)$",
        FileKind(
            "a TorchScript program",
            f"{EXPORT}, or save its weights alone: torch.save(torch.jit.load('FILE').state_dict(), 'weights.pt')",
        ),
    ),
    (
        r"(^|/)(serialized_exported_program\.json|models/model\.json)$",
        FileKind("a program of torch.export", EXPORT),
    ),
    (r"(^|/)data\.pkl$", TORCH_ZIP),
    (r"^model\.weights\.h5$", FileKind("a Keras model", EXPORT)),
    (r"\.npy$", FileKind("an archive of NumPy arrays", EXPORT)),
    (r"", FileKind("a zip archive", "unpack it and give the file in it")),
]
"""By the name of a file in the archive, the first that fits."""
SUFFIXES = {
    ".h5": "a Keras model", ".keras": "a Keras model", ".pb": "a TensorFlow model", ".params": "a file of MXNet",
    ".pdparams": "a file of PaddlePaddle", ".caffemodel": "a Caffe model", ".mlmodel": "a Core ML model",
    ".engine": "a TensorRT engine", ".trt": "a TensorRT engine", ".plan": "a TensorRT engine",
}  # fmt: skip
"""For formats that do not show in the first bytes."""


def kind_of_file(path: str | Path) -> FileKind:
    """The format of a file, whatever its name. `UserError` if it cannot be opened, is empty, or is cut off."""
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(
                f"{path} is a folder: give a file of weights, or a run folder with config.json and model.pt"
            )
        with open(require_file(path, "model weights"), "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"cannot read {path}: {explain(error)}") from error
    if not head:
        raise UserError(f"cannot read {path}: it is empty; {AGAIN}")
    if head.startswith(b"PK"):
        return _kind_of_archive(path)
    if head[257:262] == b"ustar":
        return FileKind("a tar archive", f"unpack it and give the file in it; if PyTorch before 0.2 wrote it, {SAVE}")
    for beginning, kind in BEGINNINGS:
        if re.match(beginning, head, re.DOTALL):
            return kind
    if path.suffix.lower() in SUFFIXES:
        return FileKind(SUFFIXES[path.suffix.lower()], EXPORT)
    return TEXT if _is_text(head) else UNKNOWN


def require_onnx(path: str | Path) -> None:
    """`UserError`, which names the format, if the file is of another known one than ONNX."""
    kind = kind_of_file(path)
    if kind not in (ONNX, TEXT, UNKNOWN):
        raise UserError(f"{path} is {kind.what}, no ONNX model: {kind.advice}")


def _kind_of_archive(path: Path) -> FileKind:
    try:
        with reading(path, "zip archive", AGAIN), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except UserError as error:
        raise UserError(f"cannot read {path}: it is damaged: {error}") from error
    return next(kind for pattern, kind in ARCHIVES if any(re.search(pattern, name) for name in names) or not pattern)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        text = head[: error.start].decode("utf-8") if error.start > len(head) - 4 else "\0"  # a character cut in two
    return all(character.isprintable() or character.isspace() for character in text)
