"""What a pickle would have its machine do, found by reading its opcodes without building anything.

The machine in C does whatever the opcodes say: it allocates the lengths and memo indices that they name, and builds
containers so deep that hashing or freeing them overruns the stack, or shared so often that no walk over them ends.
`check_pickle` follows the opcodes with the stack and memo of the machine, where each value stands for its depth and
size alone, and refuses what no honest file holds. Its limits follow from the size of the file.

The opcodes are described in CPython's Lib/pickletools.py.
"""

import re
import struct
from collections.abc import Callable
from mmap import mmap
from struct import Struct
from typing import NoReturn

__all__ = ["check_pickle"]

SHARED = 8
"""A pickle of n bytes may unfold to this many times n values, and to `AT_LEAST` more, where containers are shared."""
AT_LEAST = 10**6
CHOSEN_KEYS = 1000
"""Keys of one container whose hashes the writer of the file can choose, so that each collides with all others."""
LONGEST_INTEGER = 255
"""Bytes. Longer ones are hashed anew each time that they are a key."""
SMALL_INTEGER = 7, 18
"""Bytes and decimal digits, of integers which are their own hashes."""


class _Value:
    """A value on the stack: how many values it unfolds to, how many levels it has, and what it is."""

    __slots__ = ("chosen_keys", "depth", "finished", "kind", "weight")

    def __init__(self, kind: str, weight: int = 1, depth: int = 0):
        self.kind, self.weight, self.depth = kind, weight, depth
        self.finished = False
        """Whether it lies in another container: a container that is changed then would hold itself."""
        self.chosen_keys = 0


LEAF = _Value("plain value")
INTEGER = _Value("long integer")
FUNCTION = _Value("function")

FIXED = {"N": 0, "\x88": 0, "\x89": 0, "K": 1, "M": 2, "J": 4, "G": 8, "\x97": 0}
"""Opcodes that push a value written in so many bytes: None, truth, numbers; a buffer outside the file."""
BYTE, WORD, LONG = Struct("<B"), Struct("<I"), Struct("<Q")
COUNTED = {
    "U": BYTE, "T": WORD, "B": WORD, "C": BYTE, "\x8e": LONG, "\x96": LONG, "\x8c": BYTE, "X": WORD, "\x8d": LONG
}  # fmt: skip
"""Opcodes that push a string, and its length, which is written first."""
GAPS = bytes(FIXED.get(chr(op), -1) + 1 for op in range(256))
RUNS = [re.compile(b"(?:%b.{%d})*" % (re.escape(bytes([op])), max(GAPS[op] - 1, 0)), re.DOTALL) for op in range(256)]
"""One opcode again and again, as lists of numbers have it."""
STRINGS = [COUNTED.get(chr(op)) for op in range(256)]
MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET = b"\x94qrhj"
APPENDED = re.compile(rb"(?:I[0-9]{1,9}\na)+")
"""The same in the oldest protocol, where each number is appended by itself."""
MARK, STOP = b"(."


def check_pickle(
    data: bytes | mmap, start: int = 0, *, depth: int, shared: bool = False, chosen_keys: int = CHOSEN_KEYS
) -> int:
    """Raise `ValueError` if the pickle at `start` is damaged or hostile; otherwise the position after it.

    Refused are lengths beyond the end of `data`, memo indices beyond the position, more than `depth` levels, integers
    of more than 255 bytes, and opcodes that change what is no unfinished container. Unless `shared`, so are containers
    that hold themselves, and those that unfold to more than 8 values for each byte and a million.

    Time: some 0.1 to 0.5 microseconds an opcode. Memory: 8 bytes for each value of the largest container, and the memo.
    """
    try:
        return _Machine(data, start, depth, shared, chosen_keys).run(start)
    except (IndexError, struct.error):
        raise ValueError("it ends within an opcode, or takes more from the stack than there is") from None
    except KeyError as error:
        raise ValueError(f"it takes the memo's entry {error}, which is not there") from None


class _Machine:
    def __init__(self, data: bytes | mmap, start: int, depth: int, shared: bool, chosen_keys: int):
        self.data, self.depth, self.shared, self.chosen_keys = data, depth, shared, chosen_keys
        self.size = len(data)
        self.most = SHARED * (self.size - start) + AT_LEAST
        self.limit = self.size
        """End of the frame, or of the file."""
        self.work = 0
        """Values that were handed to functions so far, each as often as it was."""
        self.stack: list[_Value] = []
        """What lies above the last mark."""
        self.below: list[list[_Value]] = []
        """What lies below each of the marks."""
        self.memo: dict[int, _Value] = {}

    def run(self, position: int) -> int:
        data, size, memo, stack = self.data, self.size, self.memo, self.stack
        while True:
            if position >= self.limit:
                self.leave_frame(position)
            opcode = data[position]
            position += 1
            if gap := GAPS[opcode]:
                position += gap - 1
                stack.append(LEAF)
                if position < self.limit and data[position] == opcode:
                    run = RUNS[opcode].match(data, position, self.limit)
                    assert run is not None
                    end = run.end()
                    stack.extend([LEAF] * ((end - position) // gap))
                    position = end
            elif length := STRINGS[opcode]:
                content = position + length.size
                position = content + length.unpack_from(data, position)[0]
                if position > size:
                    raise ValueError(f"a string that goes beyond the file's end, at byte {content}")
                stack.append(LEAF)
            elif opcode == MEMOIZE:
                memo[len(memo)] = stack[-1]
            elif opcode == BINPUT:
                memo[data[position]] = stack[-1]
                position += 1
            elif opcode == LONG_BINPUT:
                index = WORD.unpack_from(data, position)[0]
                if index > position:  # the machine makes room for all indices up to this one
                    self.refuse_index(index, position)
                memo[index] = stack[-1]
                position += 4
            elif opcode == BINGET:
                stack.append(memo[data[position]])
                position += 1
            elif opcode == LONG_BINGET:
                stack.append(memo[WORD.unpack_from(data, position)[0]])
                position += 4
            elif opcode == MARK:
                self.below.append(stack)
                stack = self.stack = []
            elif opcode == STOP:
                stack.pop()
                return position
            else:
                try:
                    do = OTHERS[chr(opcode)]
                except KeyError:
                    raise ValueError(f"no opcode of pickles, at byte {position - 1}") from None
                position = do(self, position) or position
                stack = self.stack

    def line(self, position: int) -> int:
        end = self.data.find(b"\n", position) + 1
        if not end:
            raise IndexError
        return end

    def refuse_index(self, index: int, position: int) -> NoReturn:
        raise ValueError(f"the memo's entry {index} after {position} bytes")

    def integer(self, length: int, longest: int, small: bool) -> None:
        if length > longest:
            raise ValueError(f"an integer of {length} bytes")
        self.stack.append(LEAF if small else INTEGER)

    def get_by_text(self, position: int) -> int:
        end = self.line(position)
        self.stack.append(self.memo[int(self.data[position : end - 1])])
        return end

    def put_by_text(self, position: int) -> int:
        end = self.line(position)
        index = int(self.data[position : end - 1])
        if not 0 <= index <= position:
            self.refuse_index(index, position)
        self.memo[index] = self.stack[-1]
        return end

    def value_in_line(self, position: int) -> int:
        self.stack.append(LEAF)
        return self.line(position)

    def integer_in_line(self, position: int) -> int:
        if run := APPENDED.match(self.data, position - 1, self.limit):
            self.change("list", [LEAF] * run[0].count(b"a"))
            return run.end()
        end = self.line(position)
        self.integer(end - position, 3 * LONGEST_INTEGER, end - position <= SMALL_INTEGER[1])
        return end

    def counted_integer(self, position: int, count: Struct) -> int:
        (length,) = count.unpack_from(self.data, position)
        self.integer(length, LONGEST_INTEGER, length <= SMALL_INTEGER[0])
        return position + count.size + length

    def frame(self, position: int) -> int:
        (length,) = LONG.unpack_from(self.data, position)
        position += LONG.size
        if length > min(self.size, self.limit) - position:
            raise ValueError(f"a frame that goes beyond the file's end, or another frame's, at byte {position}")
        self.limit = position + length
        return position

    def leave_frame(self, position: int) -> None:
        """The machine reads a frame at once. Where an opcode goes beyond its end, the one in C loses its place, and
        would follow other opcodes than these.
        """
        if position > self.limit:
            raise ValueError(f"an opcode that goes beyond the end of its frame, before byte {position}")
        self.limit = self.size

    def function_by_number(self, position: int, length: int) -> int:
        self.stack.append(FUNCTION)
        return position + length

    def function_in_lines(self, position: int) -> int:
        self.stack.append(FUNCTION)
        return self.line(self.line(position))

    def call_in_lines(self, position: int) -> int:
        self.made(self.since_mark())
        return self.line(self.line(position))

    def since_mark(self) -> list[_Value]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, count: int) -> list[_Value]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def container(self, kind: str, items: list[_Value]) -> None:
        made = _Value(kind, 1, 1)
        self.stack.append(made)
        if items:
            self.fill(made, items)

    def fill(self, container: _Value, items: list[_Value], keys: int = 0) -> None:
        """Place `items` in a container, every `keys`-th of them as a key."""
        container.weight += len(items)
        for item in items:
            if item is not LEAF:
                item.finished = True
                container.weight += item.weight - 1
                container.depth = max(container.depth, item.depth + 1)
        if keys:
            container.chosen_keys += sum(key.weight for key in items[::keys] if key is not LEAF)
            if container.chosen_keys > self.chosen_keys:
                raise ValueError(
                    f"more than {self.chosen_keys} keys of one container are neither text nor small numbers"
                )
        if container.depth > self.depth:
            raise ValueError(f"containers in containers, more than {self.depth} deep")
        if container.weight > self.most and not self.shared:
            self.too_much()

    def change(self, kind: str, items: list[_Value], keys: int = 0) -> None:
        """Place `items` in the container below them, which must be of the kind, or an object of the file."""
        container = self.stack[-1]
        if container.kind not in (kind, "object"):
            raise ValueError(f"it fills a {container.kind} as a {kind}")
        self.fill(container, items, keys)
        if container.finished and not self.shared:
            raise ValueError("a container that holds itself, or is changed after others hold it")

    def made(self, arguments: list[_Value]) -> None:
        """Push what a function makes of its arguments."""
        self.container("object", arguments)
        self.spend(self.stack[-1].weight)

    def spend(self, weight: int) -> None:
        self.work += weight
        if self.work > self.most and not self.shared:
            self.too_much()

    def too_much(self) -> NoReturn:
        raise ValueError(f"its shared containers unfold to more than {self.most} values")

    def pop(self) -> None:
        if self.stack or not self.below:
            self.stack.pop()
        else:
            self.stack = self.below.pop()

    def build(self) -> None:
        state = self.last(1)
        if self.stack[-1].kind != "object":
            raise ValueError(f"it changes a {self.stack[-1].kind}")
        self.change("object", state)
        self.spend(self.stack[-1].weight)

    def keyed(self, kind: str, keys: int) -> None:
        items = self.since_mark()
        self.container(kind, [])
        self.fill(self.stack[-1], items, keys)

    def discard(self) -> None:
        self.since_mark()

    def replace(self, count: int, value: _Value) -> None:
        self.last(count)
        self.stack.append(value)


OTHERS: dict[str, Callable[[_Machine, int], int | None]] = {
    "]": lambda machine, _: machine.container("list", []),
    "}": lambda machine, _: machine.container("dict", []),
    ")": lambda machine, _: machine.container("tuple", []),
    "\x8f": lambda machine, _: machine.container("set", []),
    "l": lambda machine, _: machine.container("list", machine.since_mark()),
    "t": lambda machine, _: machine.container("tuple", machine.since_mark()),
    "\x85": lambda machine, _: machine.container("tuple", machine.last(1)),
    "\x86": lambda machine, _: machine.container("tuple", machine.last(2)),
    "\x87": lambda machine, _: machine.container("tuple", machine.last(3)),
    "d": lambda machine, _: machine.keyed("dict", 2),
    "\x91": lambda machine, _: machine.keyed("frozenset", 1),
    "a": lambda machine, _: machine.change("list", machine.last(1)),
    "e": lambda machine, _: machine.change("list", machine.since_mark()),
    "s": lambda machine, _: machine.change("dict", machine.last(2), keys=2),
    "u": lambda machine, _: machine.change("dict", machine.since_mark(), keys=2),
    "\x90": lambda machine, _: machine.change("set", machine.since_mark(), keys=1),
    "b": lambda machine, _: machine.build(),
    "R": lambda machine, _: machine.made(machine.last(2)),
    "\x81": lambda machine, _: machine.made(machine.last(2)),
    "\x92": lambda machine, _: machine.made(machine.last(3)),
    "o": lambda machine, _: machine.made(machine.since_mark()),
    "i": _Machine.call_in_lines,
    "c": _Machine.function_in_lines,
    "\x93": lambda machine, _: machine.replace(2, FUNCTION),
    "\x82": lambda machine, position: machine.function_by_number(position, 1),
    "\x83": lambda machine, position: machine.function_by_number(position, 2),
    "\x84": lambda machine, position: machine.function_by_number(position, 4),
    "Q": lambda machine, _: machine.replace(1, LEAF),
    **dict.fromkeys("PSVF", _Machine.value_in_line),
    **dict.fromkeys("IL", _Machine.integer_in_line),
    "\x8a": lambda machine, position: machine.counted_integer(position, BYTE),
    "\x8b": lambda machine, position: machine.counted_integer(position, WORD),
    "g": _Machine.get_by_text,
    "p": _Machine.put_by_text,
    "0": lambda machine, _: machine.pop(),
    "1": lambda machine, _: machine.discard(),
    "2": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "\x95": _Machine.frame,
    "\x80": lambda _, position: position + 1,
    "\x98": lambda machine, _: None,
}
"""All other opcodes: what each does at the position after it, giving the position after its argument if it has one."""
