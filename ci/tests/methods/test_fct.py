"""FCT: network and loss are those of the formula, batch statistics stop, the run folder maps as it was trained."""

import math

import numpy as np
import pytest
import torch
from map_steps import LABELS, make_batch, make_fitting, set_up, unit
from torch import nn

from core.models.maps import load_map
from core.models.maps.forward import ForwardNetwork

ROWS = np.array([0, 5, 1, 6, 2, 9, 19, 3])


def plain_block(x: np.ndarray, block: nn.Sequential) -> np.ndarray:
    """A block in evaluation mode, from its numbers."""
    linear, norm, _ = block
    numbers = {name: tensor.numpy().astype(np.float64) for name, tensor in block.state_dict().items()}
    x = x @ numbers["0.weight"].T
    x = (x - numbers["1.running_mean"]) / np.sqrt(numbers["1.running_var"] + norm.eps)
    return np.maximum(x * numbers["1.weight"] + numbers["1.bias"], 0)


def plain_network(old: np.ndarray, side: np.ndarray, network: ForwardNetwork, size: int) -> np.ndarray:
    """h(o, s) in evaluation mode, from the network's numbers; float64."""
    branches = []
    for vectors, branch in ((old, network.old), (side, network.side)):
        x = unit(vectors) * math.sqrt(vectors.shape[1])
        for block in branch:
            x = plain_block(x, block)
        branches.append(x)
    x = np.hstack(branches)
    for block in network.mixer[:2]:
        x = plain_block(x, block)
    last = {name: tensor.numpy().astype(np.float64) for name, tensor in network.mixer[2].state_dict().items()}
    return (x @ last["weight"].T + last["bias"]) / math.sqrt(size)


@pytest.mark.parametrize(
    ("sizes", "branches"),
    [
        ((6, 10), [(12, 6), (20, 12), (12, 6), (20, 12)]),
        ((10, 6), [(20, 10), (12, 20), (20, 10), (12, 20)]),
        ((6, 10, 3), [(12, 6), (20, 12), (6, 3), (20, 6)]),
    ],
)
def test_network_has_the_published_shapes(sizes, branches, tmp_path, ranks):
    method, run = make_fitting("fct", tmp_path, ranks, sizes, "hidden=7")
    set_up(method, run)
    layers = [module for module in method.network.modules() if isinstance(module, nn.Linear)]
    new = sizes[1]
    assert [tuple(layer.weight.shape) for layer in layers] == [*branches, (7, 4 * new), (7, 7), (new, 7)]
    assert [layer.bias is None for layer in layers] == [True] * 6 + [False]
    norms = [module for module in method.network.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [norm.num_features for norm in norms] == [rows for rows, _ in branches] + [7, 7]


@pytest.mark.parametrize("sizes", [(6, 10), (10, 6), (6, 6), (6, 10, 3)])
def test_loss_and_map_are_those_of_the_formula(sizes, tmp_path, ranks):
    method, run = make_fitting("fct", tmp_path, ranks, sizes, "hidden=7", "num_epoch=4")
    set_up(method, run)
    for norm in (module for module in method.network.modules() if isinstance(module, nn.BatchNorm1d)):
        (
            nn.init.normal_(norm.weight),
            nn.init.normal_(norm.bias),
            norm.running_mean.normal_(),
            norm.running_var.uniform_(),
        )
    method.start_epoch(2)
    batch = make_batch(run, ROWS)
    old, new = np.asarray(run.old.features[ROWS]), unit(run.new.features[ROWS])
    side = np.asarray(run.side.features[ROWS]) if run.side else old
    with torch.no_grad():
        mapped = plain_network(old, side, method.network, sizes[1])
        terms = method.loss(batch)
    assert terms.keys() == {"distance"}
    np.testing.assert_allclose(terms["distance"], ((new - mapped) ** 2).sum(axis=1).mean(), rtol=1e-5)
    (fitted,) = method.float().maps(run).values()
    sources = np.hstack((unit(old), 5 * unit(side))) if run.side else old
    np.testing.assert_allclose(fitted.map(sources, normalized=False), mapped, rtol=1e-4, atol=1e-5)
    assert fitted.direction == "old_to_new" and fitted.base is run.old and fitted.map.num_pairs == len(LABELS)
    assert (fitted.map.source.size, fitted.map.target) == (sum(sizes) - sizes[1], run.new.space)


@pytest.mark.parametrize(("num_epoch", "last_in_training"), [(4, 1), (5, 2), (1, 0)])
def test_batch_statistics_are_frozen_after_half_of_the_epochs(num_epoch, last_in_training, tmp_path, ranks):
    method, run = make_fitting("fct", tmp_path, ranks, (6, 10), "hidden=7", f"num_epoch={num_epoch}")
    set_up(method, run)
    for epoch in range(num_epoch):
        method.start_epoch(epoch)
        before = method.network.old[0][1].running_mean.clone()
        method.loss(make_batch(run, ROWS))
        assert method.network.training == (epoch <= last_in_training)
        assert torch.equal(before, method.network.old[0][1].running_mean) == (epoch > last_in_training)


@pytest.mark.parametrize("sizes", [(6, 10), (6, 10, 3)])
def test_run_folder_maps_as_trained_better_than_at_first_and_knows_its_errors(sizes, tmp_path, ranks):
    overrides = "hidden=16", "num_epoch=20", "warmup_epoch=2", "pairs_per_step=8", "lr=3e-3", "device=cpu"
    method, run = make_fitting("fct", tmp_path, ranks, sizes, *overrides)
    (fitted,) = method.fit(run).values()
    fitted.map.save(tmp_path / "map")
    loaded = load_map(tmp_path / "map")
    every = np.arange(len(LABELS))
    sources, targets = run.unit_sources(every), run.new.unit_features(every)
    mapped = loaded(sources, normalized=False)
    np.testing.assert_array_equal(mapped, fitted.map(sources, normalized=False))
    errors = ((mapped - targets) ** 2).sum(axis=1)
    assert errors.mean() < 0.6
    predicted = loaded.predicted_error(sources)
    assert predicted.shape == (len(LABELS),) and np.corrcoef(np.log(predicted), np.log(errors))[0, 1] > 0.2
