"""compile=true trains the weights of an eager run, by graphs for the training's own batch size alone."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import load_program
from rank_processes import run_on_ranks
from torch import Tensor, nn

from core.engine.trainer import Trainer
from core.errors import UserError
from core.files import ROOT
from core.parallel.ranks import Ranks
from core.settings import load_settings


def train(compiled: bool, ranks: Ranks, folder: Path, settings: list[str]) -> tuple[dict[str, Tensor], list[bool]]:
    """The weights of a run, and of each graph that was compiled whether all sizes in it are numbers, not symbols.

    In place of the compiler is a backend that runs the graphs as they are.
    """
    compile_module, numbers_alone = torch.compile, []

    def run_as_it_is(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        sizes = [size for one in inputs for size in (one.shape if isinstance(one, Tensor) else (one,))]
        numbers_alone.append(not any(isinstance(size, torch.SymInt) for size in sizes))
        return graph

    def compile_quickly(module: nn.Module) -> Any:
        return compile_module(module, backend=run_as_it_is)

    config = folder / "config.py"
    own = [f"output={folder / str(compiled)}", f"compile={compiled}", "batch_size=8", "num_epoch=1", "augment=()"]
    old_model = load_program(ROOT / "old_model" / "train.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_quickly)
        trainer = Trainer(load_settings(config, [*settings, *own]), old_model.OldModel(), "old_model", ranks)
        trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.backbone.state_dict().items()}, numbers_alone


def train_both_ways(rank: int, num_ranks: int, folder: Path, settings: list[str]) -> list[bool]:
    """Asserts that the weights are the same; of each graph whether its sizes are numbers."""
    ranks = Ranks(rank, num_ranks, torch.device("cpu"))
    expected, none = train(False, ranks, folder, settings)
    weights, numbers_alone = train(True, ranks, folder, settings)
    assert not none and weights.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(weights[name], expected[name], rtol=0, atol=1e-5), name
    return numbers_alone


@pytest.fixture
def settings(tmp_path, tiny_records, tiny_settings) -> list[str]:
    (tmp_path / "config.py").write_text("from easydict import EasyDict\nconfig = EasyDict()\n")
    return [*tiny_settings, f"rec={tiny_records}"]


def test_one_rank(tmp_path, settings, ranks):
    torch.compiler.reset()
    assert train_both_ways(0, 1, tmp_path, settings) == [True]


def test_two_ranks(tmp_path, settings):
    assert run_on_ranks(partial(train_both_ways, folder=tmp_path, settings=settings), 2, tmp_path) == [[True], [True]]


def test_machine_without_a_compiler_is_a_line(tmp_path, settings, ranks, monkeypatch):
    def fails(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        raise RuntimeError("no C++ compiler\nin three lines\nor more")

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    own = [f"output={tmp_path / 'run'}", "compile=True", "augment=()"]
    old_model = load_program(ROOT / "old_model" / "train.py")
    trainer = Trainer(
        load_settings(tmp_path / "config.py", [*settings, *own]), old_model.OldModel(), "old_model", ranks
    )
    with pytest.raises(UserError, match=r"cannot compile the network on this machine \(.*no C\+\+ compiler\): install"):
        trainer.train()
