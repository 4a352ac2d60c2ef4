import math

import pytest
import torch
import torch.distributed as dist
from plain_softmax import BOTH_WAYS, MARGINS, D, batch, make_head, reference, run_step
from rank_processes import run_on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import core.heads.partial_fc as partial_fc
from core.errors import UserError
from core.heads import PartialFC

# Two steps, the second a smaller last batch; B differs between the ranks, and some have nothing.
STEPS = {1: [[7], [3]], 2: [[5, 2], [0, 3]], 3: [[4, 0, 3], [1, 1, 1]]}
# On 3 ranks: 4 + 4 + 2 classes, 2 + 2 + 0, 1 + 1 + 0.
NUM_CLASSES = [10, 4, 2]
CASES = [
    (name, classes, dtype) for name in MARGINS for classes in NUM_CLASSES for dtype in (torch.float64, torch.float32)
]
RATES = [0.5, 0.1, 1.0]
LIMIT = 0.4
FILTERED = [(name, classes, rate) for name in ("arcface", "cosface") for classes in NUM_CLASSES for rate in RATES]


def cut(tensor, sizes, rank):
    return tensor.split(sizes)[rank]


def parameters_of(head):
    bias = None if head.bias is None else head.bias.detach().clone()
    return {"weight": head.weight.detach().clone(), "bias": bias, "class_start": head.class_start}


def worker(rank, num_ranks):
    """Results by number of ranks: of all 3, and of the first 2 as a group of their own."""
    pair = dist.new_group([0, 1])
    return {2: look(rank, 2, pair) if rank < 2 else None, 3: look(rank, 3, None)}


def look(rank, num_ranks, group):
    """Everything that is compared between numbers of ranks, on one rank, with up to 3 classes in a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(partial_fc.BLOCK_CLASSES, "cpu", 3)
        return look_by_blocks(rank, num_ranks, group)


def look_by_blocks(rank, num_ranks, group):
    results = {}
    for case in CASES:
        head = make_head(*case, group=group)
        results[case] = parameters_of(head)
        results[(*case, "rows")] = look_up(head, cut(batch(0, case[1])[1], STEPS[num_ranks][0], rank))
        results[(*case, "whole")] = head.whole()
        for step, sizes in enumerate(STEPS[num_ranks]):
            parts = [cut(tensor, sizes, rank) for tensor in batch(step, case[1])]
            for head.recompute_logits in (False, True):
                results[(*case, step, head.recompute_logits)] = run_step(head, *parts)
    for name, (margin, bias) in MARGINS.items():
        for rate in RATES:
            head = make_head(name, 10, torch.float64, rate, group)
            parts = [cut(tensor, STEPS[num_ranks][0], rank) for tensor in batch(0, 10)]
            ignored = torch.full((rank + 1,), -1)
            for head.recompute_logits in (False, True):
                torch.manual_seed(rank)
                results[name, rate, head.recompute_logits] = run_step(head, *parts)
            head.float()
            for head.recompute_logits in (False, True):
                step = run_step(head, torch.randn(rank + 1, D), ignored)
                results[name, rate, "all ignored", head.recompute_logits] = step
        torch.manual_seed(7 + rank)
        results[name, "first weights"] = parameters_of(PartialFC(margin, D, 2500, bias=bias, group=group))
    for name, classes, rate in FILTERED:
        for recompute in (False, True):
            step = filtered_step(name, classes, rate, recompute, rank, num_ranks, group)
            results["filtered", name, classes, rate, recompute] = step
    results["data parallel"] = data_parallel_step(rank, num_ranks, group)
    labels = torch.tensor([10 if rank == num_ranks - 1 else 0])
    with pytest.raises(UserError) as caught:
        make_head("arcface", 10, torch.float32, group=group)(torch.randn(1, D), labels)
    results["error"] = str(caught.value)
    return results


def look_up(head, labels):
    """Class weights of this rank's labels, and the gradient of the weights for a loss that grows with their rows."""
    rows = head.weights_of(labels)
    (rows.square().sum(1) * torch.arange(1, len(labels) + 1)).sum().backward()
    return {"rows": rows.detach(), "weight": head.weight.grad}


def two_groups(num_classes):
    """A batch and class weights `(num_classes, D)`: the first half lies near one axis, the second near another.

    The first sample's class is of the first half, but it lies on the axis of the second: all classes of a rank are
    left out of its softmax, if the rank holds no others. So are all classes of the third sample, which is ignored.
    """
    embeddings, labels = batch(0, num_classes)
    axes = torch.eye(D, dtype=torch.float64)
    noise = torch.randn(num_classes, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    weight = axes[(torch.arange(num_classes) >= num_classes / 2).long()] + 0.1 * noise
    embeddings[:3] = 0.1 * embeddings[:3] + axes[[1, 1, 0]]
    embeddings[2] = axes[0] + axes[1]
    return embeddings, labels, weight


def filtered_step(name, num_classes, rate, recompute, rank, num_ranks, group):
    """A step that leaves out conflicting classes, and which classes this rank took part with."""
    embeddings, labels, weight = two_groups(num_classes)
    head = make_head(name, num_classes, torch.float64, rate, group)
    head.interclass_filtering_threshold, head.recompute_logits = LIMIT, recompute
    with torch.no_grad():
        head.weight.copy_(weight[head.class_start : head.class_start + head.num_local])
    torch.manual_seed(rank)
    step = run_step(head, *(cut(tensor, STEPS[num_ranks][0], rank) for tensor in (embeddings, labels)))
    gradient = head.weight.grad
    rows = gradient.coalesce().indices()[0] if gradient.is_sparse else torch.arange(head.num_local)
    return step | {"classes": head.class_start + rows}


def data_parallel_step(rank, num_ranks, group):
    """Gradients of a small network under DistributedDataParallel, of the batch in equal parts."""
    torch.manual_seed(3)
    network = nn.Linear(4, D).double()
    if num_ranks > 1:
        network = DistributedDataParallel(network, process_group=group)
    head = make_head("arcface", 10, torch.float64, group=group)
    inputs, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 9, 3, 3, 5, 9])
    part = slice(rank * 6 // num_ranks, (rank + 1) * 6 // num_ranks)
    head(network(inputs[part]), labels[part]).backward()
    return {"network": [p.grad for p in network.parameters()], "weight": head.weight.grad}


def joined(results, key, what):
    parts = [result[key][what] for result in results]
    return None if parts[0] is None else torch.cat(parts)


def assert_same_as_reference(results, key, expected, tolerance):
    """Errors are measured against the largest entry of each quantity."""
    num_ranks = len(results)
    for result in results:
        assert abs(result[key]["loss"] - expected["loss"]) <= tolerance * max(1.0, expected["loss"])
        assert result[key]["labels kept"]
    for what in ("embeddings", "weight", "bias"):
        gradient = joined(results, key, what)
        if gradient is not None:
            gradient = gradient / num_ranks if what == "embeddings" else gradient
            error = (gradient - expected[what]).abs().max() / expected[what].abs().max()
            assert error <= tolerance, (what, error)


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """Function of the number of ranks: the results of each."""
    ranks = run_on_ranks(worker, 3, tmp_path_factory.mktemp("ranks"))
    results = {1: [look(0, 1, None)]} | {size: [rank[size] for rank in ranks[:size]] for size in (2, 3)}
    return results.__getitem__


ON_RANKS = pytest.mark.parametrize("num_ranks", [1, 2, 3])
BY_MARGIN = pytest.mark.parametrize("name", MARGINS)


@ON_RANKS
@BOTH_WAYS
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}")
def test_loss_and_gradients_are_those_of_the_full_softmax(results_of, num_ranks, case, recompute):
    results = results_of(num_ranks)
    weight, bias = joined(results, case, "weight"), joined(results, case, "bias")
    assert len(weight) == case[1]
    tolerance = 1e-13 if case[2] == torch.float64 else 5e-6
    for step in range(2):
        embeddings, labels = batch(step, case[1])
        expected = reference(case[0], embeddings.to(case[2]), weight, bias, labels)
        assert_same_as_reference(results, (*case, step, recompute), expected, tolerance)


@ON_RANKS
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[6:]}")
def test_whole_classifier_is_on_the_first_rank_alone(results_of, num_ranks, case):
    results = results_of(num_ranks)
    whole, *others = (result[(*case, "whole")] for result in results)
    shards = {what: joined(results, case, what) for what in ("weight", "bias")}
    assert whole.keys() == {what for what, value in shards.items() if value is not None}
    for what, value in whole.items():
        assert torch.equal(value, shards[what].float()) and value.untyped_storage().nbytes() == 4 * value.numel()
    assert others == [None] * (num_ranks - 1)


@ON_RANKS
@pytest.mark.parametrize("num_classes", NUM_CLASSES)
def test_rows_of_any_rank_are_found_and_their_gradient_is_that_of_the_mean_of_the_losses(
    results_of, num_ranks, num_classes
):
    results, case = results_of(num_ranks), ("arcface", num_classes, torch.float64)
    weight, labels = joined(results, case, "weight").requires_grad_(), batch(0, num_classes)[1]
    assert (labels == -1).any() and (labels >= 0).any()
    rows = torch.where(labels[:, None] >= 0, weight[labels.clamp(min=0)], 0)
    assert torch.equal(joined(results, (*case, "rows"), "rows"), rows)
    factors = torch.cat([torch.arange(1, size + 1) for size in STEPS[num_ranks][0]])
    ((rows.square().sum(1) * factors).sum() / num_ranks).backward()
    torch.testing.assert_close(joined(results, (*case, "rows"), "weight"), weight.grad)


@ON_RANKS
@pytest.mark.parametrize("num_classes", NUM_CLASSES)
def test_classes_are_laid_out_as_torch_chunk_does(results_of, num_ranks, num_classes):
    chunks = [chunk.tolist() for chunk in torch.arange(num_classes).chunk(num_ranks)]
    chunks += [[]] * (num_ranks - len(chunks))
    for result, chunk in zip(results_of(num_ranks), chunks):
        shard = result["arcface", num_classes, torch.float32]
        assert len(shard["weight"]) == len(chunk)
        assert shard["class_start"] == (chunk[0] if chunk else num_classes)


@ON_RANKS
@BOTH_WAYS
@BY_MARGIN
@pytest.mark.parametrize("rate", RATES[:2])
def test_sampled_head_is_the_softmax_over_positives_and_some_others(results_of, num_ranks, name, rate, recompute):
    results, key = results_of(num_ranks), (name, rate, recompute)
    embeddings, labels = batch(0, 10)
    gradient = joined(results, key, "weight")
    sampled = (gradient != 0).any(1)
    positives = torch.zeros(10, dtype=torch.bool)
    positives[labels[labels >= 0]] = True
    assert sampled[positives].all()
    parts = zip(sampled.chunk(num_ranks), positives.chunk(num_ranks))
    assert all(part.sum() == max(int(rate * len(part)), own.sum()) for part, own in parts)

    full = (name, 10, torch.float64)
    weight, bias = joined(results, full, "weight"), joined(results, full, "bias")
    labels = torch.where(labels >= 0, (sampled.cumsum(0) - 1)[labels], -1)
    expected = reference(name, embeddings, weight[sampled], None if bias is None else bias[sampled], labels)
    for what in set(expected) - {"loss", "embeddings"}:
        of_sampled = expected[what]
        expected[what] = of_sampled.new_zeros(10, *of_sampled.shape[1:])
        expected[what][sampled] = of_sampled
    assert_same_as_reference(results, key, expected, 1e-13)


@ON_RANKS
@BOTH_WAYS
@pytest.mark.parametrize("name, num_classes, rate", FILTERED)
def test_conflicting_classes_of_every_rank_are_left_out(results_of, num_ranks, name, num_classes, rate, recompute):
    results, key = results_of(num_ranks), ("filtered", name, num_classes, rate, recompute)
    embeddings, labels, weight = two_groups(num_classes)
    filtered = torch.cosine_similarity(embeddings[:, None], weight, dim=2) > LIMIT
    assert filtered[0, num_classes // 2 :].all() and filtered[2].all() and labels[2] == -1
    classes = joined(results, key, "classes")
    expected = reference(
        name,
        embeddings,
        weight[classes],
        None,
        torch.where(labels >= 0, torch.searchsorted(classes, labels), -1),
        LIMIT,
    )
    expected["weight"] = torch.zeros_like(weight).index_copy(0, classes, expected["weight"])
    assert_same_as_reference(results, key, expected, 1e-13)


@BY_MARGIN
def test_first_weights_do_not_depend_on_the_number_of_ranks(results_of, name):
    first = results_of(1)[0][name, "first weights"]
    for num_ranks in (2, 3):
        for what in ("weight", "bias"):
            other = joined(results_of(num_ranks), (name, "first weights"), what)
            assert other is None or torch.equal(other, first[what])
    assert len(first["weight"].unique(dim=0)) == 2500
    if name == "softmax":
        bound = 1 / math.sqrt(D)
        for values in (first["weight"], first["bias"]):
            assert 0.98 * bound < values.abs().max() <= bound
            assert abs(values.std() - bound / math.sqrt(3)) < 0.03 * bound
    else:
        assert abs(first["weight"].std() - 0.01) < 3e-4
        assert abs(first["weight"].mean()) < 5e-4


@ON_RANKS
@BOTH_WAYS
@BY_MARGIN
@pytest.mark.parametrize("rate", RATES)
def test_a_batch_of_ignored_samples_has_no_loss_and_no_gradient(results_of, num_ranks, name, rate, recompute):
    for result in results_of(num_ranks):
        step = result[name, rate, "all ignored", recompute]
        assert step["loss"] == 0
        for what in ("embeddings", "weight", "bias"):
            gradient = step[what]
            assert gradient is None or (gradient == 0).all()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_under_data_parallel_the_network_gets_the_gradient_of_one_process(results_of, num_ranks):
    alone = results_of(1)[0]["data parallel"]
    torch.testing.assert_close(joined(results_of(num_ranks), "data parallel", "weight"), alone["weight"])
    for result in results_of(num_ranks):
        for gradient, expected in zip(result["data parallel"]["network"], alone["network"]):
            torch.testing.assert_close(gradient, expected)


@ON_RANKS
def test_a_label_beyond_the_classes_is_an_error_on_every_rank(results_of, num_ranks):
    for result in results_of(num_ranks):
        assert "label 10" in result["error"]
        assert "num_classes = 10" in result["error"]
