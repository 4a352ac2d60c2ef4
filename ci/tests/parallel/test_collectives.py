import pytest
import torch
from rank_processes import run_on_ranks

from core.parallel.collectives import (
    all_gather_rows,
    all_reduce_,
    broadcast_object,
    mean_over_ranks,
    rank,
    row_counts,
    sum_over_ranks,
    world_size,
)

COUNTS = [0, 3]
BOUND = -0.1


def rows_of(number):
    torch.manual_seed(number)
    return torch.randn(COUNTS[number], 4, dtype=torch.float64)


def worker(number, num_ranks):
    uneven = rows_of(number).requires_grad_()
    even = torch.full((2, 3), float(number), requires_grad=True)
    gathered, gathered_even = all_gather_rows(uneven), all_gather_rows(even)
    # Every rank weights the gathered rows differently, so that a sum over the ranks differs from the rank's own part.
    ((number + 1) * gathered.square()).sum().backward()
    ((number + 1) * gathered_even).sum().backward()
    labels = all_gather_rows(torch.arange(COUNTS[number]) + 10 * number)
    shard = torch.tensor([1.0 + number, 2.0], requires_grad=True)
    total = sum_over_ranks(shard)
    ((number + 1) * total).sum().backward()
    values = rows_of(number)[:, 0].requires_grad_()
    mean = mean_over_ranks(values, values > BOUND)
    mean.backward()
    return {
        "total": total.detach(),
        "gradient of total": shard.grad,
        "mean": mean.detach(),
        "gradient of mean": values.grad,
        "mean of nothing": mean_over_ranks(values, values > 100),
        "gathered": gathered.detach(),
        "gradient": uneven.grad,
        "even": gathered_even.detach(),
        "gradient of even": even.grad,
        "labels": labels,
        "detached needs grad": all_gather_rows(uneven.detach()).requires_grad,
        "counts": row_counts(COUNTS[number], torch.device("cpu")),
        "nothing": all_gather_rows(torch.empty(0, 4)),
        "max": all_reduce_(torch.tensor([number, -number]), "max"),
        "sum": all_reduce_(torch.tensor([number])),
        "object": broadcast_object({"from": number}),
        "place": (rank(), world_size()),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_on_ranks(worker, 2, tmp_path_factory.mktemp("ranks"))


def test_rows_of_all_ranks_come_in_rank_order_whatever_their_numbers(results):
    expected = torch.cat([rows_of(number) for number in range(2)])
    for result in results:
        assert torch.equal(result["gathered"], expected)
        assert torch.equal(result["even"], torch.arange(2.0).repeat_interleave(2)[:, None].expand(4, 3))
        assert result["labels"].tolist() == [10, 11, 12]
        assert result["counts"] == COUNTS
        assert result["nothing"].shape == (0, 4)


def test_gradient_of_gathered_rows_is_summed_over_ranks(results):
    for number, result in enumerate(results):
        torch.testing.assert_close(result["gradient"], 2 * 3 * rows_of(number))
        assert torch.equal(result["gradient of even"], torch.full((2, 3), 3.0))
        assert not result["detached needs grad"]


def test_gradient_of_a_sum_over_ranks_is_that_of_the_mean_of_their_losses(results):
    for result in results:
        assert result["total"].tolist() == [3, 4]
        assert result["gradient of total"].tolist() == [1.5, 1.5]


def test_mean_over_ranks_is_the_average_of_the_ranks_shares_in_value_and_gradient(results):
    values = torch.cat([rows_of(number)[:, 0] for number in range(2)]).requires_grad_()
    selected = values > BOUND
    assert 0 < selected.sum() < len(values)
    expected = values[selected].mean()
    expected.backward()
    torch.testing.assert_close(sum(result["mean"] for result in results) / 2, expected.detach())
    torch.testing.assert_close(torch.cat([result["gradient of mean"] for result in results]) / 2, values.grad)
    assert all(result["mean of nothing"] == 0 for result in results)


def test_reductions_and_broadcast(results):
    for number, result in enumerate(results):
        assert result["max"].tolist() == [1, 0]
        assert result["sum"].tolist() == [1]
        assert result["object"] == {"from": 0}
        assert result["place"] == (number, 2)


def test_without_a_process_group_everything_is_the_identity():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert all_gather_rows(tensor) is tensor and sum_over_ranks(tensor) is tensor
    assert mean_over_ranks(tensor[:, 0], tensor[:, 0] > -9) == tensor[:, 0].mean()
    assert torch.equal(all_reduce_(tensor.detach().clone(), "max"), tensor)
    assert row_counts(3, tensor.device) == [3]
    assert broadcast_object("value") == "value"
