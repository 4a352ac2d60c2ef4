"""Checkpoints with more than tensors in them: read without running anything of theirs, or refused in one line."""

import argparse
import collections
import enum
import functools
import os
import pathlib

import numpy as np
import pytest
import torch
from easydict import EasyDict
from torch import nn

from core.backbones import build_backbone
from core.backbones.state_dicts import read_state_dict
from core.backbones.weight_files import read_weight_file
from core.errors import UserError


class Color(enum.Enum):
    RED = 1


class Options(dict):
    """A mapping of a program that is not here."""


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1


class Calls:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


WEIGHTS = build_backbone("r18", 16, width=4, depth=1, image_size=32).state_dict()


def hyper_parameters():
    options = Options(lr=0.1)
    options.extra = argparse.Namespace(optimizer="sgd")
    counts = collections.defaultdict(list)
    counts["x"].append(np.float64(0.5))
    return {
        "hyper_parameters": argparse.Namespace(lr=0.1, path=pathlib.Path("/x")),
        "options": options, "config": EasyDict(a=EasyDict(b=[1])), "counts": counts,
        "best": np.float32(0.9), "whitening": {"m": np.ones((3, 1)), "names": np.array(["a"], object)},
        "color": Color.RED, "queue": collections.deque([1, 2]), "scale": functools.partial(max, 1),
        "callbacks": {"checkpoint": {"best_model_path": pathlib.PurePosixPath("y")}},
    }  # fmt: skip


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("name", [*hyper_parameters(), "all"])
def test_objects_beside_the_tensors_are_dropped(name, new_format, tmp_path):
    beside = hyper_parameters()
    content = {**(beside if name == "all" else {name: beside[name]}), "state_dict": WEIGHTS}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=new_format)
    found = read_state_dict(tmp_path / "w.ckpt")
    assert found.keys() == WEIGHTS.keys() and torch.equal(found["fc.weight"], WEIGHTS["fc.weight"])


def test_network_among_the_options_is_dropped(tmp_path):
    torch.save({"hyper_parameters": {"net": nn.Linear(2, 2)}, "state_dict": WEIGHTS}, tmp_path / "w.ckpt")
    assert read_state_dict(tmp_path / "w.ckpt").keys() == WEIGHTS.keys()


def test_state_dict_may_be_a_mapping_of_another_program(tmp_path):
    torch.save(EasyDict(model=Options(WEIGHTS)), tmp_path / "w.pt")
    assert torch.equal(read_state_dict(tmp_path / "w.pt")["fc.weight"], WEIGHTS["fc.weight"])


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    "call",
    [
        Calls(exec, "raise SystemExit(3)"),
        Calls(print, "run"),
        Calls(eval, "print('run')"),
        Calls(getattr, [1], "append"),
        Calls(functools.partial, print, "run"),
    ],
    ids=["exec", "print", "eval", "getattr", "partial"],
)
def test_nothing_of_the_file_is_run(call, new_format, tmp_path, capfd):
    torch.save({"x": call, "state_dict": WEIGHTS}, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    assert read_state_dict(tmp_path / "w.pt").keys() == WEIGHTS.keys()
    assert "run" not in capfd.readouterr().out
    torch.save(call, tmp_path / "w.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="w.pt has no weights"):
        read_state_dict(tmp_path / "w.pt")


def test_call_of_the_operating_system_is_refused_by_name(tmp_path):
    torch.save({"x": Calls(os.system, f"touch {tmp_path}/run"), "state_dict": WEIGHTS}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"w.pt: it holds a call of posix.system, which no weights need and which is not run"
    ):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    "wrap",
    [lambda net: net, lambda net: {"model": net, "epoch": 3}, nn.DataParallel],
    ids=["plain", "dict", "parallel"],
)
def test_pickled_network_is_named_as_such(wrap, new_format, tmp_path):
    network = wrap(build_backbone("r18", 16, width=4, depth=1, image_size=32))
    torch.save(network, tmp_path / "w.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError) as error:
        read_state_dict(tmp_path / "w.pth")
    assert str(error.value).startswith(f"cannot read weights from {tmp_path}/w.pth: it holds a pickled network, ")
    assert "torch.save(model.state_dict()" in str(error.value) and "ONNX" in str(error.value)


def test_objects_that_have_no_stand_in_are_named(tmp_path):
    torch.save({"x": Slots(), "state_dict": WEIGHTS}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"holds objects that cannot be read safely \(test_weight_files.Slots\); save its"
    ):
        read_state_dict(tmp_path / "w.pt")
    torch.save({"state_dict": WEIGHTS}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(UserError, match="holds a pickle of protocol 4, which cannot be read safely; save its weights"):
        read_state_dict(tmp_path / "w.pt")


@pytest.mark.parametrize("old_format", [True, False])
def test_sparse_tensors_of_a_failed_file_are_not_checked_with_the_next(tmp_path, old_format):
    content = {"sparse": torch.eye(3).to_sparse(), "options": Options(a=1)}
    torch.save(content, tmp_path / "honest.pt", _use_new_zipfile_serialization=not old_format)
    whole = (tmp_path / "honest.pt").read_bytes()
    start = whole.index(b"options")
    (tmp_path / "damaged.pt").write_bytes(whole[: start + 7] + b"\xff" + whole[start + 8 :])
    for _ in range(2):
        with pytest.raises(UserError):
            read_weight_file(tmp_path / "damaged.pt")
        assert torch.equal(read_weight_file(tmp_path / "honest.pt")["sparse"].to_dense(), torch.eye(3))
