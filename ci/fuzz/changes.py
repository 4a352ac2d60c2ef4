"""Changes of honest files: of bytes anywhere, and of what a file of each kind is made of."""

import io
import json
import random
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from ci.fuzz.pickles import changed_pickle, new_pickle

__all__ = ["Tree", "changed"]

Tree = dict[str, bytes]
"""The files of a folder, by their paths in it."""
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "", " ", "0", "-1", "1.5", "1e400", "-1e400", "nan", "inf", "NaN", "999999999", "2147483648", "9223372036854775808",
    "9" * 400, "9" * 5000, "1_000", "0x10", "None", "null", "true", "[]", "{}", "\0", "\r", "\n", "\t", "\ufeff", "é",
    "\udcff", "../../x", "/dev/zero", "/", ".", "a" * 300, "a" * 100_000, '"', "'", ",", "٣", "(", "[" * 100_000,
    "((((" * 100, "-", "+", "1e5", "O", "<f8", ">f4", "U4", "c16",
)  # fmt: skip


def changed(rng: random.Random, tree: Tree) -> Tree:
    """The files with one or a few changes; now and then with none, or with one file missing."""
    tree = dict(tree)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 4))):
        name = rng.choice(sorted(tree))
        if rng.random() < 0.01 and len(tree) > 1:
            del tree[name]
        elif rng.random() < 0.01:
            tree[name] = b"" if rng.random() < 0.5 else rng.choice(list(tree.values()))
        else:
            try:
                tree[name] = _change_of(rng, name)(rng, tree[name])
            except Exception:  # an earlier change left nothing that such a file is made of
                tree[name] = _bytes(rng, tree[name])
    return tree


def _change_of(rng: random.Random, name: str) -> Callable[[random.Random, bytes], bytes]:
    if rng.random() < 0.3:
        return _bytes
    suffix = name.rpartition(".")[2]
    return {
        "json": _json, "jsonl": _text, "npy": _npy, "npz": _zip, "pt": _weights, "pkl": _pickle, "bin": _pickle,
        "safetensors": _safetensors, "onnx": _onnx, "sqlite": _sqlite, "db": _sqlite, "txt": _text, "lst": _text,
        "csv": _text, "idx": _text, "tsv": _text, "py": _text,
    }.get(suffix, _bytes)  # fmt: skip


def _bytes(rng: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        at = min(at, rng.randrange(len(data) + 1), 200) if rng.random() < 0.5 else at  # headers come first
        length = min(len(data) - at, rng.choice((1, 2, 4, 8, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            data[at : at + width] = (rng.choice(NUMBERS) % 256**width).to_bytes(width, order)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 16))
        elif kind == 4:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 5:
            start = rng.randrange(len(data) + 1)
            data[at : at + length] = data[start : start + length]
        else:
            del data[at if rng.random() < 0.3 else len(data) :]
    return bytes(data)


def _text(rng: random.Random, content: bytes) -> bytes:
    parts = re.split(rb"([\s,;:=\[\]{}\"()]+)", content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        kind = rng.randrange(5)
        if kind <= 1:
            parts[at] = rng.choice(WORDS).encode("utf-8", "surrogateescape")
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = b""
        else:
            parts[at:at] = parts[at : at + rng.choice((1, 2, 10))] * rng.choice((1, 2, 20))
    return b"".join(parts)


def _odd(rng: random.Random) -> Any:
    """A value as JSON may hold one."""
    deep: Any = 0
    if rng.random() < 0.03:
        for _ in range(900):
            deep = [deep]
        return deep
    return rng.choice(
        (None, True, False, 0, -1, 1, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**400, [], {}, [[]], [0],
         {"a": 1}, [None], rng.choice(WORDS[:-20]), rng.choice(WORDS), rng.choice(NUMBERS))
    )  # fmt: skip


def _json(rng: random.Random, content: bytes) -> bytes:
    value = json.loads(content)
    if rng.random() < 0.02:
        return b"[" * 200_000
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            value = _odd(rng)
            continue
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(WORDS)] = holder.pop(key)
        elif kind == 2:
            other, of = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[of]))
        elif kind == 3 and isinstance(holder[key], list):
            text = json.dumps(holder[key])
            times = rng.choice((0, 2, 1000 if len(text) < 10_000 else 2))
            holder[key] = [
                item for _ in range(times) for item in json.loads(text)
            ]  # one list shared would grow too often
        else:
            holder[key] = _odd(rng)
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in the value, its keys in order; without recursion, whose cost grows with the depth each time."""
    open_ones = [iter(_items(value))]
    while open_ones:
        following = next(open_ones[-1], None)
        if following is None:
            open_ones.pop()
            continue
        holder, key, item = following
        yield holder, key
        open_ones.append(iter(_items(item)))


def _items(value: Any) -> list[tuple[Any, Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(value, key, item) for key, item in items]


def _npy(rng: random.Random, content: bytes) -> bytes:
    found = re.match(rb"\x93NUMPY(..)(..)", content, re.DOTALL)
    if found is None:
        return _bytes(rng, content)
    length = int.from_bytes(found[2], "little")
    header, data = content[10 : 10 + length].decode("latin-1"), content[10 + length :]
    kind = rng.randrange(6)
    if kind == 0:
        descr = rng.choice(
            ("<f4", ">f4", "<f8", "<i8", "|O", "|S4", "<U9", "|V8", "<c16", "<M8[s]", "|b1", "<f2", "|i1")
        )
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{descr}'", header)
    elif kind == 1:
        sizes = ", ".join(str(rng.choice((*NUMBERS, 3, 8, -1))) for _ in range(rng.randrange(4)))
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': ({sizes},)", header)
    elif kind == 2:
        header = re.sub(
            "'shape'.*", "'shape': " + rng.choice(("(" * 5000, "None}", "(1e9,)}", "[3, 3]}", "(True,)}")), header
        )
    elif kind == 3:
        header = header.replace("False", rng.choice(("True", "1", "None", "[" * 3000)))
    elif kind == 4:
        header = _text(rng, header.encode("latin-1")).decode("latin-1")
    else:
        data = data[: rng.randrange(len(data) + 1)] if rng.random() < 0.5 else _bytes(rng, data)
    written = header.encode("latin-1")[:65000].rstrip(b"\n") + b"\n"
    return content[:8] + len(written).to_bytes(2, "little") + written + data


def _zip(rng: random.Random, content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    names = [each for each in members if each.endswith(".pkl")]
    name = rng.choice(names) if names and rng.random() < 0.7 else name
    if rng.random() < 0.05:
        del members[name]
    else:
        members[name] = _change_of(rng, name)(rng, members[name])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED) as archive:
        for each, data in members.items():
            archive.writestr(zipfile.ZipInfo(each), data)
    return written.getvalue()


def _weights(rng: random.Random, content: bytes) -> bytes:
    if content.startswith(b"PK"):
        return _zip(rng, content)
    starts = [found.start() for found in re.finditer(rb"\x80\x02", content)]  # the pickles of the old format
    start = rng.choice(starts or [0])
    end = min((other for other in starts if other > start), default=len(content))
    return content[:start] + changed_pickle(rng, content[start:end]) + content[end:]


def _pickle(rng: random.Random, content: bytes) -> bytes:
    return new_pickle(rng) if rng.random() < 0.3 else changed_pickle(rng, content)


def _safetensors(rng: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = _json(rng, content[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _onnx(rng: random.Random, content: bytes) -> bytes:
    import onnx

    model = onnx.load_model_from_string(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_fields(model))
        message, field = rng.choice(places)
        try:
            _change_field(rng, message, field)
        except (ValueError, TypeError):
            continue
    return model.SerializeToString()


def _fields(message: Any) -> Any:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for each in value if _is_repeated(field) else [value]:
                yield from _fields(each)


def _is_repeated(field: Any) -> bool:
    repeated = field.is_repeated
    return repeated() if callable(repeated) else repeated


def _change_field(rng: random.Random, message: Any, field: Any) -> None:
    if rng.random() < 0.15:
        message.ClearField(field.name)
        return
    value = getattr(message, field.name)
    if _is_repeated(field):
        at = rng.randrange(len(value))
        if rng.random() < 0.3:
            del value[at]
        elif field.message_type is not None:
            value.add().CopyFrom(value[at])
        else:
            value[at] = _scalar(rng, value[at])
    elif field.message_type is None:
        setattr(message, field.name, _scalar(rng, value))


def _scalar(rng: random.Random, value: Any) -> Any:
    if isinstance(value, bytes):
        return _bytes(rng, value)
    if isinstance(value, str):
        return rng.choice(WORDS + ("Loop", "If", "Identity", "Reshape", "ConstantOfShape", "Conv", "data"))
    return type(value)(rng.choice((*NUMBERS, -1, 3, 7)))


def _sqlite(rng: random.Random, content: bytes) -> bytes:
    """Cells and rows changed; a document's checksum is made to fit its new text."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(content)
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = rng.choice(tables)
        column = rng.choice([row[1] for row in db.execute(f'PRAGMA table_info("{table}")')])
        cells = [cell for (cell,) in db.execute(f'SELECT "{column}" FROM "{table}"')]
        old = rng.choice(cells)
        if rng.random() < 0.2:
            db.execute(f'DELETE FROM "{table}" WHERE "{column}" IS ?', (old,))
        else:
            new = rng.choice((None, -1, 0, 2**62, 1.5, "", "x", b"\xff", rng.choice(WORDS), "[" * 50_000))
            if isinstance(old, str) and old[:1] in ("[", "{"):
                new = _json(rng, old.encode()).decode()
            db.execute(f'UPDATE OR REPLACE "{table}" SET "{column}" = ? WHERE "{column}" IS ?', (new, old))
            if table == "documents" and isinstance(new, str):
                db.execute("UPDATE documents SET crc = ? WHERE value = ?", (zlib.crc32(new.encode()), new))
        db.commit()
        return db.serialize()
