"""Updates by rows against float64 restatements, PyTorch's dense optimisers and its SparseAdam."""

import pytest
import torch

import core.engine.row_optimizers as row_optimizers
from core.engine.optimization import LossScaler, build_optimizer
from core.settings import Settings

ROWS, STEPS = 12, 6


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setitem(row_optimizers.BLOCK_ROWS, "cpu", 3)


def build(name, parameters, **values):
    return build_optimizer(Settings(**{"optimizer": name, "lr": 0.3, "weight_decay": 0.1} | values), parameters)


def gradients(shape, share=0.5, seed=0):
    """(rows, their gradients) of some steps; in the second nothing takes part."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        rows = torch.nonzero(torch.rand(shape[0], generator=generator) < (0 if step == 1 else share))[:, 0]
        yield rows, torch.randn(len(rows), *shape[1:], generator=generator)


def sparse(rows, values, shape):
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=True)


def moments(optimizer, parameter):
    return [value for value in optimizer.state[parameter].values() if getattr(value, "shape", None) == parameter.shape]


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("shape", [(ROWS, 5), (ROWS,), (0, 5)])
def test_sgd_moves_the_rows_of_the_gradient_as_float64_does_and_no_other(shape, momentum):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(shape))
    weight, buffer = parameter.detach().double(), torch.zeros(shape, dtype=torch.float64)
    optimizer = build("sgd", [parameter], momentum=momentum)
    for rows, values in gradients(shape):
        before = [tensor.detach().clone() for tensor in (parameter, *moments(optimizer, parameter))]
        parameter.grad = sparse(rows, values, shape)
        optimizer.step()
        buffer[rows] = momentum * buffer[rows] + values.double() + 0.1 * weight[rows]
        weight[rows] -= 0.3 * buffer[rows]
        others = torch.ones(shape[0], dtype=torch.bool)
        others[rows] = False
        for old, new in zip(before, (parameter, *moments(optimizer, parameter))):
            assert torch.equal(old[others], new[others])
    torch.testing.assert_close(parameter.double(), weight, rtol=0, atol=1e-5)
    if momentum:
        torch.testing.assert_close(*(m.double() for m in (moments(optimizer, parameter)[0], buffer)), rtol=0, atol=1e-5)


def test_adamw_without_decay_is_pytorchs_sparse_adam_in_float64():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(ROWS, 5))
    twin = torch.nn.Parameter(parameter.detach().double())
    optimizer, plain = build("adamw", [parameter], weight_decay=0.0), torch.optim.SparseAdam([twin], lr=0.3)
    for rows, values in gradients(parameter.shape):
        parameter.grad = sparse(rows, values, parameter.shape)
        twin.grad = sparse(rows, values.double(), parameter.shape)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(parameter.double(), twin, rtol=0, atol=1e-5)
    for mine, theirs in zip(moments(optimizer, parameter), moments(plain, twin)):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_gradients_of_all_rows_give_what_the_dense_optimizer_gives(name):
    torch.manual_seed(0)
    by_rows, dense = (torch.nn.Parameter(torch.linspace(-1, 1, ROWS * 5).view(ROWS, 5)) for _ in range(2))
    optimizers = build(name, [by_rows]), build(name, [dense])
    for _ in range(STEPS):
        values = torch.randn(ROWS, 5)
        by_rows.grad, dense.grad = sparse(torch.arange(ROWS), values, values.shape), values
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(by_rows, dense, rtol=0, atol=1e-6)
    for mine, theirs in zip(*(moments(o, p) for o, p in zip(optimizers, (by_rows, dense)))):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rows", "copied"), [([1, 4, 7], False), ([4, 1, 7], True), ([1, 4, 4], True)])
def test_gradients_that_are_in_order_are_not_copied_and_others_are_summed(rows, copied):
    weight = torch.zeros(ROWS, 5, requires_grad=True)
    taken = torch.nn.functional.embedding(torch.tensor(rows), weight, sparse=True)
    (taken * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    assert not weight.grad.is_coalesced()  # what autograd leaves behind
    expected = weight.grad.to_dense()
    ordered = row_optimizers._in_order(weight.grad)
    assert torch.equal(ordered.to_dense(), expected)
    assert ordered.is_coalesced() and ordered.indices()[0].tolist() == sorted(set(rows))
    assert (ordered.values().data_ptr() != weight.grad._values().data_ptr()) == copied


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rows_that_come_twice_count_with_the_sum_and_dense_parameters_move_beside(name):
    torch.manual_seed(0)
    first, second, other = (torch.nn.Parameter(torch.ones(ROWS, 5)) for _ in range(3))
    values = torch.randn(3, 5)
    optimizers = build(name, [first, other]), build(name, [second])
    twice = torch.sparse_coo_tensor([[4, 7, 4]], values, first.shape, check_invariants=True)
    first.grad, other.grad = twice, torch.ones(ROWS, 5)
    second.grad = sparse(torch.tensor([4, 7]), torch.stack([values[0] + values[2], values[1]]), first.shape)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(first, second)
    assert first.grad is twice and (first[[4, 7]] != 1).all() and (other != 1).all()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_overflow_of_fp16_changes_nothing_and_the_next_step_counts_as_the_first(name, ranks):
    torch.manual_seed(0)
    scaled, plain = (torch.nn.Parameter(torch.ones(ROWS, 5)) for _ in range(2))
    optimizers = build(name, [scaled]), build(name, [plain])
    scaler = LossScaler("cpu", init_scale=16.0)
    scaler.scale(torch.ones(()))  # the scale comes into being with its first use
    for values in (torch.full((2, 5), torch.inf), torch.randn(2, 5)):
        scaled.grad = sparse(torch.tensor([1, 8]), values * scaler.get_scale(), scaled.shape)
        scaler.unscale_(optimizers[0])
        scaler.step(optimizers[0])
        scaler.update()
        if values.isinf().any():
            assert (scaled == 1).all() and not any(moment.any() for moment in moments(optimizers[0], scaled))
    plain.grad = sparse(torch.tensor([1, 8]), values, plain.shape)
    optimizers[1].step()
    torch.testing.assert_close(scaled, plain)
    assert (scaled[[1, 8]] != 1).all()
