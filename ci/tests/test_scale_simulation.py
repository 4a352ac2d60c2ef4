"""The formulas of the simulation, by cases worked by hand, and the parts that it measures."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ci import scale_simulation
from ci.scale_simulation import (
    Job,
    Rates,
    activation_bytes,
    bottleneck,
    check,
    checkpoint_bytes,
    exchange_seconds,
    load_rates,
    memory_bytes,
    step_parts,
    step_seconds,
)
from core.errors import UserError

SIMPLE = Rates(
    backbone=100, launches=0.25, product=1e6, memory=1e6, link=1e5, network=1e4, latency=0.5, overlap=0.5, loader=1000,
    disk=1e6,
)  # fmt: skip
"""Round numbers, so that the parts can be worked out on paper."""


def test_one_rank_exchanges_nothing():
    parts = step_parts(Job(1, classes=10, batch=5, embedding=2, parameters=1e9), SIMPLE)
    assert parts["exchange"] == parts["gradients"] == 0
    assert parts["backbone"] == 5 / 100 and parts["launches"] == 0.25 and parts["loader"] == 5 / 1000
    assert parts["head, flops"] == pytest.approx(6 * 5 * 10 * 2 / 1e6)
    # 15 passes over 5 x 10 logits, 9 and 5 over 10 x 2 weights, of 4 bytes
    assert parts["head, memory"] == pytest.approx(4 * (15 * 50 + 14 * 20) / 1e6)
    paged = step_parts(Job(1, classes=10, batch=5, embedding=2), replace(SIMPLE, fresh=100.0))
    assert paged["head, memory"] == pytest.approx(parts["head, memory"] + 4 * 20 / 100)


def test_four_ranks_of_one_node_by_hand():
    job = Job(4, classes=102, rate=0.5, batch=10, embedding=8, parameters=25_000)
    parts = step_parts(job, SIMPLE)
    assert (job.local_classes, job.sampled) == (26, 13)
    assert parts["head, flops"] == pytest.approx(6 * 40 * 13 * 8 / 1e6)
    # 15 passes over 40 x 13 logits, 13 and 17 over the 13 x 8 weights that are sampled
    assert parts["head, memory"] == pytest.approx(4 * (15 * 520 + 30 * 104) / 1e6)
    # gather and scatter of 40 x 8: 1,280 bytes, 3/4 of them each; all-reduces of 160 and 320 bytes, 3/2 of them
    assert parts["exchange"] == pytest.approx(4 * 0.5 + (2 * 960 + 240 + 480) / 1e5)
    # 100,000 bytes, 3/2 of them: 2.0 s, of which half of two thirds of 0.1 s are hidden
    assert parts["gradients"] == pytest.approx(0.5 + 1.5 - 0.5 * 2 / 3 * 0.1)
    assert parts["loader"] == pytest.approx(40 / 1000)
    assert step_seconds(parts) == pytest.approx(sum(parts.values()) - 0.04) and bottleneck(parts) == "exchange"


def test_more_nodes_exchange_over_the_network_and_load_each_for_itself():
    near = step_parts(Job(8, classes=64, batch=10, embedding=8, parameters=0), SIMPLE)
    far = step_parts(Job(16, classes=128, batch=10, embedding=8, parameters=0), SIMPLE)
    assert near["loader"] == far["loader"] == 80 / 1000
    assert near["exchange"] == pytest.approx(2 + 7 / 8 * (2 * 2560 + 2 * 320 + 2 * 640) / 1e5)
    assert far["exchange"] == pytest.approx(2 + 15 / 16 * (2 * 5120 + 2 * 640 + 2 * 1280) / 1e4)
    assert exchange_seconds(1e4, 2, 1, SIMPLE) == pytest.approx(0.5 + 0.05)


def test_hidden_exchange_of_gradients_costs_nothing_and_a_slow_loader_everything():
    parts = step_parts(Job(2, classes=8, batch=1000, embedding=2, parameters=10_000), SIMPLE)
    assert parts["gradients"] == 0  # 0.9 s within half of two thirds of 10 s
    slow = step_parts(Job(2, classes=8, batch=1000, embedding=2), Rates(loader=1.0))
    assert step_seconds(slow) == 2000 and bottleneck(slow) == "loader"


def test_memory_of_ten_million_classes_by_hand():
    whole = memory_bytes(Job(8, 10_000_000, parameters=1e6, activations=2e6))
    assert whole["weights"] == whole["momentum"] == whole["gradient"] == 1_250_000 * 512 * 4 == 2_560_000_000
    assert whole["logits"] == 1024 * 1_250_000 * 4 and whole["rows"] == 65536 * 2048
    assert whole["backbone"] == 12e6 + 128 * 2e6
    sampled = memory_bytes(Job(8, 10_000_000, rate=0.1))
    assert sampled["gradient"] == 125_000 * (2048 + 8) and sampled["rows"] == 5 * 65536 * 2048
    assert sampled["weights"] == 2_560_000_000 and sampled["logits"] == 512_000_000
    assert checkpoint_bytes(Job(64, 10_000_000, parameters=1e6)) == 2 * 4 * (5_120_000_000 + 1_000_000)


@pytest.mark.parametrize(
    "classes, rate, batch, milliseconds",
    [
        (93_431, 1.0, 128, 4.96),
        (93_431, 0.1, 128, 5.47),
        (1_000_000, 1.0, 128, 16.53),
        (1_000_000, 0.1, 128, 6.49),
        (1_000_000, 1.0, 1024, 42.7),
    ],
)
def test_heads_take_what_was_measured_on_an_h100(classes, rate, batch, milliseconds):
    parts = step_parts(Job(1, classes, rate, batch), Rates())
    predicted = 1e3 * (parts["launches"] + parts["head, flops"] + parts["head, memory"])
    assert predicted == pytest.approx(milliseconds, rel=0.23)


@pytest.mark.parametrize("classes, images_per_second", [(93_431, 3_092), (1_000_000, 2_514)])
def test_r50_trains_as_fast_as_was_measured_on_an_h100(classes, images_per_second):
    assert 128 / step_seconds(step_parts(Job(1, classes), Rates())) == pytest.approx(images_per_second, rel=0.06)


@pytest.mark.parametrize(
    "classes, rate, gib", [(93_431, 1.0, 0.77), (93_431, 0.1, 0.53), (1_000_000, 1.0, 6.40), (1_000_000, 0.1, 4.90)]
)
def test_heads_need_the_memory_that_was_measured_on_an_h100(classes, rate, gib):
    parts = memory_bytes(Job(1, classes, rate))
    assert (sum(parts.values()) - parts["backbone"]) / scale_simulation.GIB == pytest.approx(gib - 0.03, rel=0.07)


def test_activations_are_what_an_image_more_keeps():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10), nn.Sigmoid(), nn.Linear(10, 5))
    # the input of each linear layer; the sigmoid keeps its output, which is the second one's input
    assert activation_bytes(network, image_size=8) == 4 * (3 * 8 * 8 + 10)
    assert activation_bytes(network, image_size=8, precision=torch.bfloat16) == 2 * (3 * 8 * 8 + 10)


def test_rates_of_a_file_take_the_place_of_the_assumed_ones(tmp_path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"backbone": 1234, "latency": 0.0}))
    assert load_rates(path) == Rates(backbone=1234, latency=0.0) and load_rates(None) == Rates()
    for wrong in ({"backbon": 1}, {"link": "fast"}, {"link": -1}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=r"rates\.json: .* is no rate; known are"):
            load_rates(path)


def test_check_predicts_and_measures_a_step(monkeypatch):
    job = Job(1, classes=300, batch=4, embedding=16)
    (row,) = check((2,), repeats=1, job=job)
    numbers = [float(each) for each in row[1:]]
    assert row[0] == "2" and len(numbers) == 9 and all(math.isfinite(each) for each in numbers)
    assert numbers[-3] == pytest.approx(sum(numbers[:-3]), abs=0.4) and numbers[-2] > 0


def test_tables_have_a_line_for_each_training():
    for table in (scale_simulation.time_table(Rates(), 128), scale_simulation.memory_table(128)):
        assert len([line for line in table.splitlines() if " M " in line]) == 8
