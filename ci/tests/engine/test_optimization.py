"""Schedules at points worked out by hand; optimisers; the loss scaler."""

import pytest
import torch

from core.engine.optimization import build_optimizer, learning_rate
from core.settings import Settings


def settings(**values) -> Settings:
    known = {"lr": 0.8, "num_epoch": 10, "schedule_epochs": (5, 8), "schedule_gamma": 0.5, "weight_decay": 0.1}
    return Settings(**known | values)


@pytest.mark.parametrize(
    ("values", "points"),
    [
        ({}, {0: 0.8, 5: 0.2, 7.5: 0.05, 10: 0.0, 11: 0.0}),
        ({"schedule_power": 1.0}, {2.5: 0.6, 10: 0.0}),
        ({"warmup_epoch": 2}, {0: 0.0, 0.5: 0.2, 1: 0.4, 2: 0.8, 6: 0.2, 10: 0.0}),
        ({"schedule": "cosine"}, {0: 0.8, 5: 0.4, 10: 0.0}),
        ({"schedule": "cosine", "warmup_epoch": 4}, {2: 0.4, 4: 0.8, 7: 0.4, 10: 0.0}),
        ({"schedule": "step"}, {0: 0.8, 4.999: 0.8, 5: 0.4, 7.999: 0.4, 8: 0.2, 9.999: 0.2}),
        ({"schedule": "step", "warmup_epoch": 1}, {0.25: 0.2, 1: 0.8, 5: 0.4}),
        ({"warmup_epoch": 10}, {5: 0.4, 9.5: 0.76}),
    ],
)
def test_learning_rate_at_points_worked_out_by_hand(values, points):
    for epoch, rate in points.items():
        assert learning_rate(settings(**values), epoch) == pytest.approx(rate, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_steps_as_the_plain_one(name):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    twins = [torch.nn.Parameter(parameter.detach().double()) for parameter in parameters]
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = build_optimizer(settings(optimizer=name), [*parameters, frozen])
    plain = {
        "sgd": lambda: torch.optim.SGD(twins, lr=0.8, momentum=0.9, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(twins, lr=0.8, weight_decay=0.1),
    }[name]()
    assert optimizer.param_groups[0]["lr"] == 0.8
    for _ in range(3):
        for parameter, twin in zip(parameters, twins):
            parameter.grad = torch.randn(parameter.shape)
            twin.grad = parameter.grad.double()
        optimizer.step()
        plain.step()
    for parameter, twin in zip(parameters, twins):
        assert torch.allclose(parameter.double(), twin, atol=1e-5)  # float32 against float64
    assert torch.equal(frozen, torch.ones(2))


def test_state_is_allocated_as_zeros_so_that_a_skipped_first_step_leaves_none_uninitialised():
    parameter = torch.nn.Parameter(torch.randn(1000))
    before = parameter.detach().clone()
    for name in ("sgd", "adamw"):
        optimizer = build_optimizer(settings(optimizer=name), [parameter])
        tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
        assert tensors and not any(tensor.any() for tensor in tensors)
    assert torch.equal(parameter, before) and parameter.grad is None


def test_default_schedule_reaches_zero_at_its_end():
    assert learning_rate(Settings(), 0) == 0.1 and learning_rate(Settings(), 35) == 0
