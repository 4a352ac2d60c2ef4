"""Class weights in files: whatever form and number of files they come in, the rows in the order of the classes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.errors import UserError
from core.heads import PartialFC
from core.heads.class_weights import read_class_weights
from core.heads.margins import ArcFace, Softmax

C, D, RANKS = 23, 4, 11


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(C, D, generator=torch.Generator().manual_seed(0))


def shards(rows: Tensor) -> list[Tensor]:
    """The rows of each rank as arcface_torch deals them: 3 for the first one, then 2 each."""
    counts = [C // RANKS + (rank < C % RANKS) for rank in range(RANKS)]
    return [part.clone() for part in rows.split(counts)]


def write_state_dicts(folder: Path, rows: Tensor) -> Path:
    """arcface_torch 1.5 and later."""
    for rank, part in enumerate(shards(rows)):
        torch.save({"weight": part}, folder / f"softmax_fc_gpu_{rank}.pt")
    torch.save({"fc.weight": torch.zeros(2, 2)}, folder / "model.pt")
    return folder


def write_checkpoints(folder: Path, rows: Tensor) -> Path:
    """What it resumes from, with `save_all_states`."""
    for rank, part in enumerate(shards(rows)):
        content = {"epoch": 3, "state_dict_backbone": {"a": part}, "state_dict_softmax_fc": {"weight": part}}
        torch.save(content, folder / f"checkpoint_gpu_{rank}.pt")
    return folder


def write_tensors(folder: Path, rows: Tensor) -> Path:
    """Its first version, in PyTorch's format of that time, in half precision here, the momentum beside the weights."""
    for rank, part in enumerate(shards(rows)):
        for name, tensor in (("weight", part.half()), ("weight_mom", torch.zeros_like(part))):
            torch.save(tensor, folder / f"rank_{rank}_softmax_{name}.pt", _use_new_zipfile_serialization=False)
    return folder


def write_pattern(folder: Path, rows: Tensor) -> Path:
    """Files that were renamed, found by a pattern."""
    for rank, part in enumerate(shards(rows)):
        torch.save(part, folder / f"head.{rank}.pth")
        torch.save(part, folder / f"head.{rank}_old.pth")
    return folder / "head.*.pth"


def write_run_folder(folder: Path, rows: Tensor) -> Path:
    """Ours; the files of other ranks beside it are not its own."""
    write_state_dicts(folder, torch.zeros_like(rows))
    torch.save({"weight": rows}, folder / "classifier.pt")
    return folder


FORMS = [write_state_dicts, write_checkpoints, write_tensors, write_pattern, write_run_folder]


@pytest.mark.parametrize("write", FORMS)
def test_all_forms_give_the_rows_in_the_order_of_the_classes(
    write: Callable[[Path, Tensor], Path], tmp_path: Path, rows: Tensor
):
    found = read_class_weights(write(tmp_path, rows), C, D)
    wanted = rows.half().float() if write is write_tensors else rows
    assert torch.equal(found.tensors()["weight"], wanted) and len(found.tensors()) == 1
    head = PartialFC(ArcFace(16.0, 0.5), D, C)
    found.load_into(head)
    assert torch.equal(head.weight.detach(), wanted) and head.weight.requires_grad
    for start in range(C):  # as any rank of any number of ranks holds them
        head.class_start, head.num_local = start, min(5, C - start)
        head.weight = torch.nn.Parameter(torch.zeros(head.num_local, D))
        found.load_into(head)
        assert torch.equal(head.weight.detach(), wanted[start : start + 5])


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("in_head", [True, False])
def test_a_bias_that_only_one_side_has_is_logged(
    tmp_path: Path, rows: Tensor, caplog: pytest.LogCaptureFixture, in_file: bool, in_head: bool
):
    caplog.set_level("INFO")
    bias = torch.arange(C).float()
    torch.save({"weight": rows, "bias": bias} if in_file else {"weight": rows}, tmp_path / "head.pt")
    head = PartialFC(Softmax(), D, C, bias=in_head)
    read_class_weights(tmp_path / "head.pt", C, D).load_into(head)
    if head.bias is not None:
        assert torch.equal(head.bias.detach(), bias if in_file else torch.zeros(C))
    assert len(caplog.records) == 1 + (in_file != in_head)


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, rows: Tensor):
    def message(path: Path, num_classes: int = C, embedding_size: int = D) -> str:
        with pytest.raises(UserError) as caught:
            read_class_weights(path, num_classes, embedding_size)
        return re.sub(re.escape(str(tmp_path)), "F", str(caught.value))

    write_state_dicts(tmp_path, rows)
    joined = "F/softmax_fc_gpu_0.pt ... softmax_fc_gpu_10.pt"
    assert message(tmp_path, 24) == (
        f"the class weights in {joined} are of 23 classes, but the data have 24: name those of the same classes"
    )
    assert message(tmp_path, C, 8) == (
        f"the class weights in {joined} are for embeddings of size 4, not 8: set embedding_size=4, or name others"
    )
    assert message(tmp_path / "softmax_fc_gpu_2.pt") == (
        "the class weights in F/softmax_fc_gpu_2.pt are of 2 classes, but the data have 23: name the folder, to join "
        "the files of all ranks"
    )
    (tmp_path / "softmax_fc_gpu_3.pt").unlink()
    assert message(tmp_path) == (
        "F has the class weights of rank 10, but not softmax_fc_gpu_3.pt: all ranks' are needed"
    )
    torch.save({"weight": torch.zeros(2, D + 1)}, tmp_path / "softmax_fc_gpu_3.pt")
    assert message(tmp_path) == f"{joined}: the files are not of one classifier (embedding sizes [4, 5])"
    assert message(tmp_path / "no_*.pt") == (
        "no class weights match F/no_*.pt: the star stands for the ranks 0, 1, 2 and so on"
    )
    assert message(tmp_path / "model.pt") == "F/model.pt is not a classifier: expected weight (C, D) and bias (C,)"
    assert message(tmp_path / "none.pt") == "class weights not found: F/none.pt"
    (tmp_path / "noise.pt").write_bytes(b"no zip")
    assert message(tmp_path / "noise.pt").startswith("cannot read weights from F/noise.pt: it is a text file; ")
    (tmp_path / "empty").mkdir()
    assert message(tmp_path / "empty").startswith("no class weights in F/empty: expected classifier.pt of a run folder")
