"""Pickles from a grammar, and opcodes of honest pickles taken out, put in, repeated and exchanged."""

import pickletools
import random
import struct

__all__ = ["changed_pickle", "new_pickle"]

NUMBERS = (0, 1, 2, 3, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**61 - 1, 2**63, 2**64 - 1)
CODES = (b"f4", b"i8", b"u1", b"b1", b"S3", b"U2", b"O8", b"U999999999", b"V8", b"M8", b"c16", b"f2", b"S0", b"i4,i4")
FUNCTIONS = (
    b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy._core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"c__builtin__\nfrozenset\n", b"cbuiltins\ncomplex\n",
    b"cbuiltins\nbytes\n", b"cbuiltins\nbytearray\n", b"cos\nsystem\n", b"ccollections\nOrderedDict\n",
)  # fmt: skip
LARGEST = 100_000
"""Bytes of what is repeated."""
KEYS = (b"imlist", b"qimlist", b"gnd", b"bbx", b"easy", b"hard", b"junk", b"__setstate__", b"__dict__", b"__defaults__")
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def new_pickle(rng: random.Random) -> bytes:
    """One that the machine follows to its end, as a rule."""
    content = _value(rng, rng.choice((1, 2, 3, 5, 8)))
    if rng.random() < 0.2:
        content = content + rng.choice((b"\x85", b"2\x86", b"]2e", b"\x94h\x00\x86")) * rng.choice((2, 30, 200, 5000))
    return b"\x80" + bytes([rng.choice((2, 3, 4, 5))]) + content + b"."


def changed_pickle(rng: random.Random, content: bytes) -> bytes:
    """An honest pickle with a few of its opcodes changed."""
    places = [place for _, _, place in pickletools.genops(content)]
    ends = [*places[1:], len(content)]
    parts = [content[start:end] for start, end in zip(places, ends)]
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        kind = rng.randrange(8)
        if kind == 0:
            parts[at] = b""
        elif kind == 1:
            parts[at] = parts[at] * min(rng.choice((2, 3, 100, 3000)), 1 + LARGEST // (1 + len(parts[at])))
        elif kind == 2:
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = parts[other]
        elif kind == 4:
            parts.insert(at, _value(rng, 2))
        elif kind == 5:
            parts[at] = _value(rng, 2)
        elif kind == 6 and parts[at]:
            parts[at] = rng.choice(OPCODES) + parts[at][1:]
        else:
            parts[at] = parts[at][:1] + _number(rng, max(0, len(parts[at]) - 1))
    return b"".join(parts)


def _number(rng: random.Random, width: int) -> bytes:
    return (
        (rng.choice(NUMBERS) % 256**width).to_bytes(width, "little")
        if width <= 8
        else rng.randbytes(min(width, LARGEST))
    )


def _value(rng: random.Random, depth: int) -> bytes:
    content = _container(rng, depth - 1) if depth > 0 and rng.random() < 0.7 else _leaf(rng)
    if rng.random() < 0.3:
        content += rng.choice(
            (b"\x94", b"q" + bytes([rng.randrange(8)]), b"r" + _word(rng), b"p%d\n" % rng.randrange(9))
        )
    return content


def _word(rng: random.Random) -> bytes:
    return struct.pack("<I", rng.choice(NUMBERS) % 2**32 if rng.random() < 0.1 else rng.randrange(6))


def _text(rng: random.Random) -> bytes:
    text = rng.choice(KEYS) if rng.random() < 0.7 else rng.randbytes(rng.randrange(20))
    return rng.choice((b"\x8c", b"U", b"C")) + bytes([len(text)]) + text


def _leaf(rng: random.Random) -> bytes:
    return rng.choice(
        (
            lambda: rng.choice((b"N", b"\x88", b"\x89", b"]", b"}", b")", b"\x8f")),
            lambda: b"K" + bytes([rng.randrange(256)]),
            lambda: b"J" + _number(rng, 4),
            lambda: b"G" + struct.pack(">d", rng.choice((0.0, -1.5, 1e308, float("nan"), float("inf")))),
            lambda: b"\x8a\x09" + _number(rng, 8) + b"\x01",
            lambda: b"I%d\n" % rng.choice(NUMBERS),
            lambda: _text(rng),
            lambda: _text(rng),
            lambda: b"h" + bytes([rng.randrange(5)]),
            lambda: b"j" + _word(rng),
            lambda: b"X" + struct.pack("<I", 3) + b"abc",
            lambda: rng.choice((b"X", b"B", b"T", b"\x8b")) + _number(rng, 4) + b"ab",
            lambda: rng.choice((b"\x8d", b"\x8e", b"\x96", b"\x95")) + _number(rng, 8) + b"ab",
            lambda: rng.choice(FUNCTIONS),
        )
    )()


def _container(rng: random.Random, depth: int) -> bytes:
    some = [_value(rng, depth) for _ in range(rng.choice((0, 1, 2, 2, 3, 5)))]
    keyed = b"".join(_text(rng) + value for value in some)
    return rng.choice(
        (
            lambda: b"](" + b"".join(some) + b"e",
            lambda: b"(" + b"".join(some) + rng.choice((b"t", b"l", b"\x91")),
            lambda: b"}(" + keyed + b"u",
            lambda: b"\x8f(" + b"".join(some) + b"\x90",
            lambda: b"](" + (b"".join(some) + b"2") * rng.choice((1, 20)) + b"0e",
            lambda: _array(rng, depth),
            lambda: _array(rng, depth),
            lambda: rng.choice(FUNCTIONS) + b"(" + b"".join(some) + b"tR",
            lambda: rng.choice(FUNCTIONS) + b"N}" + _text(rng) + _leaf(rng) + b"s\x86b",
            lambda: _value(rng, depth) + _value(rng, depth) + b"b",
            lambda: b"\x8c\x05numpy\x8c\x05dtype\x93(" + b"".join(some) + b"t" + rng.choice((b"R", b"\x81")),
        )
    )()


def _array(rng: random.Random, depth: int) -> bytes:
    code = rng.choice(CODES)
    shape = b"(" + b"".join(b"J" + _number(rng, 4) if rng.random() < 0.2 else b"K" + bytes([rng.randrange(4)])
                            for _ in range(rng.choice((0, 1, 1, 2, 3, 9, 40)))) + b"t"  # fmt: skip
    dtype = b"cnumpy\ndtype\n\x8c" + bytes([len(code)]) + code + b"\x89\x88\x87R"
    if rng.random() < 0.5:
        dtype += b"(K\x03\x8c\x01" + rng.choice((b"<", b">", b"|", b"x")) + b"NNNJ\xff\xff\xff\xff2K\x00tb"
    content = b"C\x10" + rng.randbytes(16)
    if rng.random() < 0.3:
        content = b"](" + b"".join(_value(rng, depth) for _ in range(rng.randrange(4))) + b"e"
    if rng.random() < 0.2:
        return b"cnumpy.core.multiarray\nscalar\n" + dtype + content + b"\x86R"
    if rng.random() < 0.3:
        return b"cnumpy.core.numeric\n_frombuffer\n(" + content + dtype + shape + b"\x8c\x01CtR"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return made + b"(K\x01" + shape + dtype + rng.choice((b"\x88", b"\x89")) + content + b"tb"
