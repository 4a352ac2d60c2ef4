import base64
import faulthandler
import os
import pickle
import resource
import signal
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.evaluation.revisited_files import read_revisited
from core.evaluation.verification import read_verification_set
from core.restricted_pickle import load_plain_pickle

PLAIN = {
    "list": [1, -2.5, True, None, "text", b"bytes", 1 + 2j, 2**80],
    "tuple": ((), (1,), {3, 4}, frozenset([5]), bytearray(b"\x00\xff"), b""),
    "bytes": b"\x00\x80\xff",
}
ARRAYS = [
    np.arange(12, dtype=np.int64).reshape(3, 4),
    np.arange(12.0, dtype=">f4").reshape(3, 4).T,
    np.array([True, False]),
    np.zeros((0, 3)),
    np.array(3.5),
    np.array(["ab", "c"]),
    np.array([b"x", b"yz"]),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 0, 2),
]


def write(tmp_path, content, protocol):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_arrays_are_read_from_every_protocol(tmp_path, protocol):
    assert load_plain_pickle(write(tmp_path, PLAIN, protocol)) == PLAIN
    loaded = load_plain_pickle(write(tmp_path, [*ARRAYS, np.float32(1.5), np.bool_(True), np.int16(-3)], protocol))
    for got, expected in zip(loaded, ARRAYS):
        assert got.dtype.newbyteorder("=") == expected.dtype.newbyteorder("=") and got.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(got), expected)
    assert loaded[-3:] == [1.5, True, -3] and loaded[-3].dtype == np.float32


def test_python_2_pickle_of_strings_and_arrays_is_read(tmp_path):
    # written by hand in the form of Python 2's protocol 2: ([str], [bool], numpy.array([1, 2], dtype='<i4'))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02i4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x01\x00\x00\x00\x02\x00\x00\x00tb"
    )
    path = tmp_path / "python2.pkl"
    path.write_bytes(b"\x80\x02]U\x03\xff\xd8\x00a]\x88a" + array + b"\x87.")
    strings, flags, numbers = load_plain_pickle(path)
    assert strings == [b"\xff\xd8\x00"] and flags == [True]
    np.testing.assert_array_equal(np.asarray(numbers), [1, 2])


class Shell:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (Shell(), "posix.system"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (np.random.default_rng(0), "numpy.random"),
        (print, "builtins.print"),
    ],
)
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, content, refused):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, [content], 4)
    with pytest.raises(UserError, match=refused) as caught:
        load_plain_pickle(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "harm.txt").exists()


def objects(items, shape):
    """An array of objects of that shape; the items may be lists."""
    array = np.empty(len(items), object)
    for i, item in enumerate(items):
        array[i] = item
    return array.reshape(shape)


def described(value):
    """A value to compare: arrays in it by type, shape and content."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind, value.shape, described(value.ravel().tolist())
    return [described(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        objects([1, 2.5, "text", b"bytes", None, (1, [2])], (2, 3)),
        objects([[1, 2], [3, 4]], (2,)),  # two lists, not a matrix
        objects([np.arange(3), np.array(["a"]), objects(["inner"], (1,))], (3, 1)),
        objects(list(range(24)), (2, 3, 4)).transpose(2, 0, 1),
        np.asfortranarray(objects(["a", "b", "c", "d"], (2, 2))),
        objects([], (0, 2)),
        np.array("alone", dtype=object),
    ],
    ids=range(7),
)
def test_arrays_of_plain_objects_are_read(tmp_path, protocol, array):
    got = load_plain_pickle(write(tmp_path, array, protocol))
    assert isinstance(got, np.ndarray) and got.dtype == object and got.shape == array.shape
    assert described(got) == described(array)


def test_structures_and_forged_arrays_of_objects_are_refused(tmp_path):
    structure = np.zeros(2, dtype=[("a", "i4"), ("b", "O")])
    with pytest.raises(UserError, match="not a readable pickle"):
        load_plain_pickle(write(tmp_path, structure, 2))
    whole = pickle.dumps(objects(["a", "b", "c"], (3,)), 2)
    for shape in (b"K\x02\x85", b"K\x40\x85", b"J\xff\xff\xff\xff\x85"):
        (tmp_path / "forged.pkl").write_bytes(whole.replace(b"K\x03\x85", shape, 1))
        if shape[:1] == b"J":  # -1: as many as there are
            assert load_plain_pickle(tmp_path / "forged.pkl").tolist() == ["a", "b", "c"]
            continue
        with pytest.raises(UserError, match="not a readable pickle"):
            load_plain_pickle(tmp_path / "forged.pkl")


@pytest.mark.parametrize(
    "call",
    [
        b"cnumpy.core.multiarray\nscalar\n",  # scalar(dtype('O'), bytes): an address from the file
        b"cnumpy.core.numeric\n_frombuffer\n",
    ],
)
def test_bytes_are_never_taken_for_objects(tmp_path, call):
    object_type = b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R"
    data = b"C\x08\x00\x00\x00\x00\x00\x00\x00\x01"
    if b"scalar" in call:
        content = call + object_type + data + b"\x86R."
    else:
        content = call + b"(" + data + object_type + b"K\x01\x85X\x01\x00\x00\x00CtR."
    (tmp_path / "forged.pkl").write_bytes(b"\x80\x03" + content)
    with pytest.raises(UserError, match="without a plain type"):
        load_plain_pickle(tmp_path / "forged.pkl")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_objects_in_an_array_are_no_way_round(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    for array in (objects([Shell()], (1,)), objects([[objects([Shell()], (1,))]], (1,))):
        with pytest.raises(UserError, match=r"posix\.system"):
            load_plain_pickle(write(tmp_path, array, protocol))
    assert not (tmp_path / "harm.txt").exists()


def test_forged_shape_and_damaged_pickles_are_refused_with_the_file_named(tmp_path):
    whole = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    forged = whole.replace(b"K\x04\x85", b"K\x40\x85")
    assert forged != whole
    for content in (forged, whole[:-20], b"", b"no pickle at all", base64.b64encode(whole)):
        path = tmp_path / "damaged.bin"
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged.bin"):
            load_plain_pickle(path)
    with pytest.raises(UserError, match="not found"):
        load_plain_pickle(tmp_path / "missing.bin")


MEGABYTE = 2**20
CALL = b"cnumpy.core.multiarray\n"
RECONSTRUCT = CALL + b"_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
BYTES, OBJECTS = (b"cnumpy\ndtype\n\x8c\x02%b\x89\x88\x87R" % code for code in (b"u1", b"O8"))


def word(number):
    return struct.pack("<I", number)


def long(number):
    return struct.pack("<Q", number)


def array(dtype, shape, content):
    return RECONSTRUCT + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


def doubling(levels, opening=b"]"):
    """A list of two references to a list of two references to ..."""
    return b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(levels))


def chosen_keys(count):
    """Numbers that all have the hash 1."""
    return b"".join(b"\x8a\x0b" + (1 + i * (2**61 - 1)).to_bytes(11, "little") for i in range(1, count))


ATTACKS = {
    # crashes of the interpreter
    "tuples in tuples, freed": b"N" + b"\x85" * MEGABYTE + b".",
    "tuples in tuples, hashed": b"}N" + b"\x85" * MEGABYTE + b"Ns.",
    "tuples in tuples, members of a set": b"\x8f(N" + b"\x85" * MEGABYTE + b"\x90.",
    "tuples in tuples, compared": b"}N" + b"\x85" * 50_000 + b"NsN" + b"\x85" * 50_000 + b"Ns.",
    "lists in lists": b"(" * 50_000 + b"l" * 50_000 + b".",
    "lists from the memo": b"]\x94" + b"".join(b"]h%ca\x94" % (i % 256) for i in range(250)) + b"0" * 250 + b".",
    "dicts in dicts": b"}" + b"N}" * 50_000 + b"s" * 50_000 + b".",
    "frozensets in frozensets": b"(" * 100_000 + b"N" + b"\x91" * 100_000 + b".",
    "arrays in arrays": b"]\x94"
    + b"".join(b"0" + array(OBJECTS, b"K\x01\x85", b"](j" + word(i) + b"e") + b"\x94" for i in range(20_000))
    + b".",
    # gigabytes
    "a memo index": b"Nr\xff\xff\xff\xff.",
    "a memo index in a line": b"Np4000000000\n.",
    "bytes": b"B\xff\xff\xff\xff.",
    "bytes with a long length": b"\x8e" + long(2**62) + b".",
    "text": b"\x8d" + long(2**40) + b".",
    "changeable bytes": b"\x96" + long(2**40) + b".",
    "old text": b"T\xff\xff\xff\x7f.",
    "a frame": b"\x80\x04\x95" + long(2**62) + b"N.",
    "a frame that ends within an opcode": b"\x95" + long(60) + b"](" + b"N" * 50 + b"C\x20" + b"]" * 32 + b"e.",
    "a frame in a frame": b"\x95" + long(30) + b"](NN\x95" + long(60) + b"N" * 80 + b"e.",
    "an integer": b"\x8b\xff\xff\xff\x7f.",
    "many bytes from a number": b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "many changeable bytes from a number": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "an array of too few bytes": array(BYTES, b"J\xff\xff\xff\x7f\x85", b"C\x01a") + b".",
    "an array of no bytes": array(BYTES, b"J\xff\xff\xff\x7fK\x00\x86", b"C\x00") + b".",
    "the same bytes in many arrays": b"B" + word(MEGABYTE) + b"a" * MEGABYTE + b"\x940]("
    + array(BYTES, b"J" + word(MEGABYTE) + b"\x85", b"h\x00") * 5000 + b"e.",
    "the same bytes added": b"B" + word(MEGABYTE) + b"a" * MEGABYTE + b"\x940](cbuiltins\nbytes\n("
    + b"h\x00" * 5000 + b"tRe.",
    "the same text encoded": b"X" + word(MEGABYTE) + b"a" * MEGABYTE + b"\x940]("
    + b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86R" * 5000 + b"e.",
    # beyond what NumPy checks
    "letters that are none": array(BYTES.replace(b"u1", b"U1"), b"K\x01\x85", b"C\x04\x00\x00\x11\x00") + b".",
    # time without end
    "references that double": doubling(64) + b".",
    "tuples that double, hashed": b"N" + b"2\x86" * 64 + b"}2" + b"0" + b"q\x00]h\x00\x85a.",
    "tuples that double, a key": b"}N" + b"2\x86" * 64 + b"Ns.",
    "keys of one hash": b"\x8f(" + chosen_keys(100_000) + b"\x90.",
    "members of one hash": b"cbuiltins\nset\n](" + chosen_keys(100_000) + b"e\x85R.",
    "a long key again and again": b"\x8b" + word(MEGABYTE) + b"\1" * MEGABYTE + b"\x94}(" + b"h\x00N" * 300_000 + b"u.",
    "a long number in a line": b"L" + b"9" * MEGABYTE + b"L\n.",
    "a list that holds itself": b"]q\x00h\x00a.",
    "a dict that holds itself": b"}q\x00K\x01h\x00s.",
    "a list changed in another": b"]q\x00]h\x00ah\x00Na0.",
    # the machine itself
    "nothing on the stack": b"0.",
    "what lies below a mark": b"N(\x85.",
    "no such opcode": b"\xff.",
    "no end": b"]" * 100,
    "a number that is filled": b"K\x01K\x02a.",
    "a function that is changed": b"c_codecs\nencode\n}b.",
    "attributes of a function": b"c_codecs\nencode\nN}\x8c\x0c__defaults__N\x85s\x86b.",
    "attributes of a class": b"cnumpy\ndtype\nN}\x8c\x0c__setstate__Ns\x86b.",
}  # fmt: skip


def in_child(read):
    """What `read` says to a UserError, in a child with half a gigabyte of memory more and two seconds of time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + 512 * MEGABYTE,) * 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            signal.setitimer(signal.ITIMER_VIRTUAL, 2)  # of its own time: other processes may take as much as they want
            try:
                read()
                said = "nothing"
            except UserError as error:
                said = f"UserError: {error}"
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode()[:2000])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return said if status == 0 else f"ended by signal {signal.Signals(status).name}"


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickle_is_refused_in_one_line(tmp_path, attack):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04" + ATTACKS[attack] if attack != "a frame" else ATTACKS[attack])
    said = in_child(lambda: load_plain_pickle(path))
    assert said.startswith(f"UserError: {path} ") and "\n" not in said, said
    assert "MemoryError" not in said and len(said) < 500


def test_child_tells_of_crash_hang_and_memory():
    assert "SIGSEGV" in in_child(lambda: os.kill(os.getpid(), signal.SIGSEGV))
    assert "MemoryError" in in_child(lambda: bytearray(2**30))
    assert "SIGVTALRM" in in_child(lambda: [None for _ in iter(int, 1)])


@pytest.mark.parametrize("alteration", [a for a in ATTACKS if "function" in a or "class" in a])
def test_honest_file_is_read_as_before_after_one_that_alters_functions(tmp_path, alteration):
    (tmp_path / "hostile.pkl").write_bytes(b"\x80\x04" + ATTACKS[alteration])
    with pytest.raises(UserError):
        load_plain_pickle(tmp_path / "hostile.pkl")
    for protocol in range(6):
        loaded = load_plain_pickle(write(tmp_path, [PLAIN, *ARRAYS], protocol))
        assert loaded[0] == PLAIN
        for got, expected in zip(loaded[1:], ARRAYS):
            np.testing.assert_array_equal(np.asarray(got), expected)


def test_shared_and_deep_but_honest_data_are_read(tmp_path):
    shared = list(range(100))
    deep = "leaf"
    for _ in range(90):
        deep = [deep]
    numbers = {i * 0.5 for i in range(5000)} | {2**70 + i for i in range(900)}
    content = {"shared": [shared] * 1000, "deep": deep, "numbers": numbers, (1, "key"): {"a": None}}
    for protocol in range(6):
        loaded = load_plain_pickle(write(tmp_path, content, protocol))
        assert loaded == content
        assert loaded["shared"][0] is loaded["shared"][999]


@pytest.mark.parametrize("protocol", range(6))
def test_memo_of_many_strings_and_long_runs_are_read(tmp_path, protocol):
    content = [f"name{i % 70_000}" for i in range(90_000)] + [*range(-300, 70_000, 7), *np.linspace(0, 1, 99).tolist()]
    assert load_plain_pickle(write(tmp_path, content, protocol)) == content


def test_readers_of_shared_lists_end(tmp_path):
    """Up to the limit of the pickle, in which lists may be shared, their readers walk over each once."""
    (tmp_path / "jpg").mkdir()
    path = tmp_path / "gnd_roxford5k.pkl"
    for level in (18, 40):
        many = doubling(level)
        path.write_bytes(b"\x80\x04" + many + b"}(\x8c\x06imlisth%cu." % level)
        assert "UserError" in in_child(lambda: read_revisited(tmp_path, "roxford5k"))
        (tmp_path / "set.bin").write_bytes(b"\x80\x04" + many + b"](h%ch%ce." % (level, level))
        assert "UserError" in in_child(lambda: read_verification_set(tmp_path / "set.bin"))


def test_text_among_numbers_takes_no_square_of_memory(tmp_path):
    (tmp_path / "jpg").mkdir()
    texts = ["x" * MEGABYTE, *["y"] * 5000]
    gnd = [{"bbx": [0, 0, 1, 1], "easy": texts, "hard": [], "junk": []}]
    content = {"imlist": ["a"], "qimlist": ["b"], "gnd": gnd}
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content))
    assert "no ground truth" in in_child(lambda: read_revisited(tmp_path, "roxford5k"))
    (tmp_path / "set.bin").write_bytes(pickle.dumps(([b"a"] * 2, texts)))
    assert "expected two images" in in_child(lambda: read_verification_set(tmp_path / "set.bin"))


def test_one_image_in_many_pairs_is_kept_once(tmp_path):
    image = np.zeros(MEGABYTE, np.uint8)
    (tmp_path / "set.bin").write_bytes(pickle.dumps(([image] * 5000, [True] * 2500)))
    assert in_child(lambda: read_verification_set(tmp_path / "set.bin")) == "nothing"


@pytest.mark.parametrize("old_format", [True, False])
@pytest.mark.parametrize("attack", ["tuples in tuples, hashed", "keys of one hash", "lists that double"])
def test_hostile_weights_are_refused_in_one_line(tmp_path, old_format, attack):
    path = tmp_path / "model.pt"
    hostile = doubling(200, b"]") + b"." if attack == "lists that double" else ATTACKS[attack]
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=not old_format)
    if old_format:
        whole = path.read_bytes()
        start = whole.index(b"}q\x00X\x06\x00\x00\x00weight")
        path.write_bytes(whole[:start] + hostile)
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, b"\x80\x02" + hostile if name.endswith("data.pkl") else content)
    assert in_child(lambda: read_state_dict(path)).startswith("UserError: ")
