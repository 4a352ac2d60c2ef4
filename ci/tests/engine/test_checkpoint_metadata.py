"""The description of a checkpoint, a pickle: read as it was written, and nothing that it names is run."""

import os
import pickle

import pytest
import torch
from torch.distributed import checkpoint as dcp

from core.engine.checkpoint import _Reader

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "h": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path):
    dcp.save(dict(TENSORS), checkpoint_id=tmp_path / "step_1", no_dist=True)
    return tmp_path / "step_1"


def test_tensors_are_read_as_by_pytorch_s_reader(folder):
    state = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    dcp.load(state, storage_reader=_Reader(folder), no_dist=True)
    assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)
    plain = dcp.FileSystemReader(folder).read_metadata()
    assert _Reader(folder).read_metadata().state_dict_metadata == plain.state_dict_metadata


class Calls:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def test_nothing_that_the_description_names_is_run(folder, tmp_path):
    for call in (Calls(os.system, f"touch {tmp_path}/run"), Calls(exec, "1"), Calls(getattr, "a", "upper")):
        (folder / ".metadata").write_bytes(pickle.dumps({"x": call}))
        with pytest.raises(pickle.UnpicklingError, match="its .metadata asks to build .*, which is not run"):
            _Reader(folder).read_metadata()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x04}.", b"\x80\x02" + b")" + b"\x85" * 100_000 + b".", b"nonsense"])
def test_a_damaged_description_is_an_error_that_the_checkpoint_s_reader_names(folder, data):
    (folder / ".metadata").write_bytes(data)
    with pytest.raises((ValueError, TypeError)):
        _Reader(folder).read_metadata()


def test_a_training_of_thousands_of_tensors_is_described(tmp_path):
    many = {f"backbone.layer{i}.weight": torch.full((2,), float(i)) for i in range(3000)}
    dcp.save(dict(many), checkpoint_id=tmp_path / "step_1", no_dist=True)
    state = {name: torch.zeros(2) for name in many}
    dcp.load(state, storage_reader=_Reader(tmp_path / "step_1"), no_dist=True)
    assert all(torch.equal(state[name], many[name]) for name in many)
