"""An index of WebDataset shards: where in which tar file each image lies, and its label.

A shard is a tar file that is not compressed. The members KEY.EXTENSION that follow one another with one KEY are a
sample, as `webdataset.ShardWriter` writes them and as that package groups them; its own code does it here too. Of a
sample are used the image (`.jpg`, `.png` ... by the last part of the extension) and the label: the whole number in
KEY.cls, or else the one field of KEY.json that has a name as image lists have it (`label`, `class`, `identity` ...).

The bytes of a tar's member lie together as they are, so that their place is enough to read any image by itself: the
index makes of shards what records are, with rows in any order. The shards are read once for it; after that nothing
needs the package.
"""

import io
import json
import logging
import math
import os
import re
import tarfile
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from core.data.foreign_lists import CLASS, LABEL_COLUMNS
from core.errors import UserError
from core.files import reading, require_file
from core.outputs import replaced_atomically, require_replaceable
from core.progress import track

__all__ = ["INDEX_NAME", "ShardIndex", "find_shards", "read_shard_index", "shard_index_of", "write_shard_index"]

logger = logging.getLogger(__name__)
INDEX_NAME = "shards.npz"
MAKE = "python tools/index_shards.py"
COPY = "copy or make the shard again"
IMAGE_EXTENSIONS = frozenset("jpg jpeg jpe jfif png gif webp bmp tif tiff pbm pgm ppm jp2 j2k avif".split())
META = re.compile(r"__[^/]*__($|/)")
"""Members that the package leaves out."""
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK = 512
"""Bytes of a tar's header; a block of zeros ends the file."""
LONGEST_LABEL = 1 << 20
"""Bytes of a member that has the label."""
LARGEST_IMAGE = (1 << 31) - 1
"""Bytes."""


@dataclass(frozen=True)
class ShardIndex:
    """The N images of S shards, in their order: 20 bytes an image.

    `shards`: S paths; `sizes` int64 (S,): their bytes; `counts` int64 (S,): images in each. Of each image `offsets`
    int64 (N,) and `lengths` int32 (N,), the place of its bytes in its shard, and `labels` int64 (N,).
    """

    shards: list[Path]
    sizes: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def shard_index_of(rec: str | Path) -> Path | None:
    """The index that `rec` names, an .npz file or a folder with one; None if it names something else.

    `UserError` that says how to make the index where `rec` names shards without one.
    """
    path = Path(rec)
    if path.suffix == ".npz":
        return path
    if path.is_dir():
        if (path / INDEX_NAME).is_file():
            return path / INDEX_NAME
        shards = any(path.glob("*.tar")) and not any(path.glob("*.rec"))
    else:
        shards = path.suffix == ".tar"
    if shards:
        raise UserError(f"{path}: shards are read by an index, which is not there; make it: {MAKE} {path}")
    return None


def find_shards(names: Sequence[str | Path]) -> list[Path]:
    """The shards that are named, and of folders all .tar files in the order of their names.

    `UserError` without any, and for one that is named twice (by itself and by its folder), whose images would count
    twice.
    """
    shards = [shard for path in map(Path, names) for shard in (sorted(path.glob("*.tar")) if path.is_dir() else [path])]
    if not shards:
        raise UserError(f"no shard (.tar) in {', '.join(map(str, names))}")
    ((shard, times),) = Counter(map(os.path.realpath, shards)).most_common(1)
    if times > 1:
        raise UserError(f"{shard} is named {times} times: name a shard, or the folder that it is in, once")
    return shards


def write_shard_index(shards: Sequence[Path], index: Path, num_workers: int = 1) -> ShardIndex:
    """Write the index of `shards`, in this order, which `num_workers` processes read; its images.

    Kept are the paths from the index's folder to the shards, so that both may be moved together. `UserError` if the
    package webdataset is not installed, and naming the shard and what is wrong with it: cut short, damaged,
    compressed; a sample without an image or a label. Memory: 32 bytes an image.
    """
    if find_spec("webdataset") is None:
        raise UserError("the index of shards is made with the package webdataset: pip install webdataset")
    require_replaceable(index)
    if num_workers == 1 or len(shards) == 1:
        scanned = [_scan(shard) for shard in track(shards, "reading shards", len(shards), "shards")]
    else:
        with ProcessPoolExecutor(min(num_workers, len(shards)), get_context("spawn")) as pool:
            scanned = list(track(pool.map(_scan, shards), "reading shards", len(shards), "shards"))
    sizes, *columns = zip(*scanned)
    offsets, lengths, labels = (np.concatenate(column) for column in columns)
    made = ShardIndex(
        list(shards), np.array(sizes), np.array([len(each) for each in columns[0]]), offsets, lengths, labels
    )
    if not len(offsets):
        raise UserError(f"{shards[0].parent}: its {len(shards)} shards contain no images")
    with replaced_atomically(index) as temporary:
        np.savez(
            temporary,
            shards=np.array([_path_from(index, shard) for shard in shards]),
            sizes=made.sizes, counts=made.counts, offsets=offsets, lengths=lengths, labels=labels,
        )  # fmt: skip
    logger.info("%s: %d images in %d shards", index, len(offsets), len(shards))
    return made


def _path_from(index: Path, shard: Path) -> str:
    """The path from the index's folder to the shard, of real folders: the system follows links before it goes up."""
    return os.path.relpath(os.path.join(os.path.realpath(shard.parent), shard.name), os.path.realpath(index.parent))


def read_shard_index(path: str | Path) -> ShardIndex:
    """The index in a file. `UserError` if it is missing, damaged, or not that of shards."""
    with reading(path, "index of shards", f"make it again: {MAKE} FOLDER"):
        with zipfile.ZipFile(require_file(path, "index of shards")) as archive:
            most = os.path.getsize(path)
            names = [str(name) for name in _array(archive, "shards", most).tolist()]
            arrays = [_array(archive, name, most) for name in ("sizes", "counts", "offsets", "lengths", "labels")]
        if any(each.ndim != 1 or each.dtype.kind not in "iu" for each in arrays):
            raise ValueError("its places and labels are not rows of whole numbers")
        if any("\0" in name for name in names):
            raise ValueError("the name of a shard has a null byte")
        shards = [Path(path).parent / name for name in names]
        sizes, counts, offsets, lengths, labels = (each.astype(np.int64) for each in arrays)
        if not len(sizes) == len(counts) == len(shards) or (counts < 0).any():
            raise ValueError("its shards, their sizes and the numbers of their images do not fit each other")
        if not len(offsets) == len(lengths) == len(labels) == counts.sum() > 0:
            raise ValueError("its images have not as many places as labels")
        whole = np.repeat(sizes, counts)
        if (offsets < 0).any() or (offsets > whole).any() or (lengths < 0).any() or (lengths > whole - offsets).any():
            raise ValueError("it has an image outside of its shard")
        if (labels < 0).any() or max(labels.max(), lengths.max()) > LARGEST_IMAGE:
            raise ValueError("it has a label or a length that is none")
        return ShardIndex(shards, sizes, counts, offsets, lengths.astype(np.int32), labels)


def _array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """An array of an .npz file of `most` bytes; `ValueError` if it has another size than it says."""
    member = archive.getinfo(f"{name}.npy")
    if max(member.file_size, member.compress_size) > most:
        raise ValueError(f"{name} is larger than the file")
    file = io.BytesIO(archive.read(member))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
        raise ValueError(f"{name} has not as many numbers as it says")
    return np.frombuffer(file.getbuffer(), dtype, offset=file.tell()).reshape(shape)


def _scan(path: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Size of a shard, and of its images offsets int64, lengths int32 and labels int64."""
    from webdataset.tariterators import group_by_keys

    def refuse(error: Exception) -> NoReturn:
        raise UserError(f"{path} is not a shard: {error.args[0]}") from None

    offsets, lengths, labels = array("q"), array("i"), array("q")
    with open(require_file(path, "shard"), "rb") as file, reading(path, "shard", COPY):
        size = os.fstat(file.fileno()).st_size
        start = file.read(max(map(len, COMPRESSIONS)))
        for magic, name in COMPRESSIONS.items():
            if start.startswith(magic):
                raise UserError(f"{path} is compressed ({name}), and images are read one by one: unpack it to a .tar")
        file.seek(0)
        for sample in group_by_keys(_members(file, path), handler=refuse):
            image = _image(sample, path)
            offsets.append(image.offset_data)
            lengths.append(image.size)
            labels.append(_label(sample, file, path))
    return size, np.array(offsets, np.int64), np.array(lengths, np.int32), np.array(labels, np.int64)


def _members(file: BinaryIO, path: Path) -> Iterator[dict[str, Any]]:
    """Each regular member as `group_by_keys` takes it, its header in place of its bytes; `UserError` at a damage."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyrefly: ignore[missing-attribute]  (it would keep all headers)
            if not member.isreg() or META.match(member.name):
                continue
            if member.issparse() or member.size > LARGEST_IMAGE:
                raise UserError(f"{path}: {member.name} is stored as no image is (sparse, or 2 GB and more)")
            yield {"fname": member.name, "data": member, "__url__": str(path)}
        end = os.pread(file.fileno(), BLOCK, tar.offset)
    if len(end) < BLOCK:
        raise UserError(f"{path} ends without the mark of a tar's end: it was not copied or written to the end; {COPY}")
    if any(end):  # the iteration ends there as at the end of the file
        raise UserError(f"{path} is damaged at byte {tar.offset}: no header of a member; {COPY}")


def _image(sample: Mapping[str, Any], path: Path) -> tarfile.TarInfo:
    found = [name for name in sample if name.rpartition(".")[2] in IMAGE_EXTENSIONS and not name.startswith("__")]
    if len(found) != 1:
        what = f"several images ({', '.join(found)})" if found else "no image (.jpg, .png ...)"
        raise UserError(f"{path}: the sample {sample['__key__']} has {what}; leave it out, or write it anew with one")
    return sample[found[0]]


def _label(sample: Mapping[str, Any], file: BinaryIO, path: Path) -> int:
    member = sample.get("cls", sample.get("json"))
    if member is None:
        raise UserError(f"{path}: the sample {sample['__key__']} has no label: neither a .cls nor a .json")
    value: Any = os.pread(file.fileno(), min(member.size, LONGEST_LABEL), member.offset_data).decode(errors="replace")
    if "cls" not in sample:
        value = _json_label(value, member.name, path)
    if not re.match(CLASS, str(value).strip()):
        raise UserError(
            f"{path}: the label of the sample {sample['__key__']} is {str(value)[:60]!r}; labels are whole numbers "
            "from 0 on of at most 9 digits"
        )
    return int(float(value))


def _json_label(text: str, name: str, path: Path) -> Any:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {name} is no JSON: {error}") from None
    names = fields if isinstance(fields, dict) else {}
    keys = [name for name in names if re.sub(r"[\s_-]", "", name).lower() in LABEL_COLUMNS[0]]
    if len(keys) != 1:
        what = f"several fields that may be the label ({', '.join(keys)})" if keys else "no field that is the label"
        raise UserError(f"{path}: {name} has {what}; write the samples with KEY.cls, or with the field `label` alone")
    return fields[keys[0]]
