import pytest
import torch
from plain_softmax import BOTH_WAYS, MARGINS, D, batch, make_head, reference, run_step
from torch.utils._python_dispatch import TorchDispatchMode

import core.heads.partial_fc as partial_fc
from core.errors import UserError
from core.heads import PartialFC
from core.heads.margins import ArcFace, CosFace, Softmax


@BOTH_WAYS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_and_a_large_loss_scale_give_the_scaled_gradient(dtype, recompute):
    head = make_head("arcface", 10, torch.float32)
    head.recompute_logits = recompute
    embeddings, labels = batch(0, 10)
    embeddings = embeddings.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(embeddings, labels)
        (loss * 2.0**10).backward()
    expected = reference("arcface", embeddings.detach(), head.weight.detach(), None, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected["loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.weight.grad.double() / 2**10, expected["weight"], atol=1e-6, rtol=1e-4)
    assert embeddings.grad.dtype == dtype
    relative = (embeddings.grad.double() / 2**10 - expected["embeddings"]).abs().max() / expected[
        "embeddings"
    ].abs().max()
    assert relative < torch.finfo(dtype).eps


@BOTH_WAYS
@pytest.mark.parametrize("name", MARGINS)
def test_gradients_are_finite_where_embeddings_lie_on_their_class(name, recompute):
    head = make_head(name, 4, torch.float32)
    head.recompute_logits = recompute
    embeddings = torch.cat([head.weight.detach() * 30, -head.weight.detach()]).requires_grad_()
    loss = head(embeddings, torch.arange(4).repeat(2))
    loss.backward()
    assert loss.isfinite()
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@BOTH_WAYS
def test_without_gradient_the_loss_is_the_same(recompute):
    head = make_head("arcface", 10, torch.float64)
    head.recompute_logits = recompute
    embeddings, labels = batch(0, 10)
    expected = head(embeddings, labels).item()
    with torch.inference_mode():
        assert head(embeddings, labels).item() == expected


def test_the_random_draw_goes_on_from_a_saved_generator_state():
    head = make_head("cosface", 200, torch.float32, 0.2)
    state = torch.get_rng_state()
    draws = [run_step(head, *batch(0, 200))["weight"] for _ in range(2)]
    torch.set_rng_state(state)
    again = [run_step(head, *batch(0, 200))["weight"] for _ in range(2)]
    assert torch.equal(draws[0], again[0])
    assert torch.equal(draws[1], again[1])
    assert not torch.equal(draws[0] != 0, draws[1] != 0)


@BOTH_WAYS
@pytest.mark.parametrize("name", MARGINS)
@pytest.mark.parametrize("block", [1, 7, 23, 4096])
def test_blocks_of_classes_of_any_size_give_the_full_softmax(name, block, recompute, monkeypatch):
    monkeypatch.setitem(partial_fc.BLOCK_CLASSES, "cpu", block)
    head = make_head(name, 23, torch.float64)
    head.recompute_logits = recompute
    embeddings, labels = batch(0, 23)
    step = run_step(head, embeddings, labels)
    bias = None if head.bias is None else head.bias.detach()
    expected = reference(name, embeddings, head.weight.detach(), bias, labels)
    for what in ("loss", "embeddings", "weight", *(() if bias is None else ("bias",))):
        torch.testing.assert_close(step[what], expected[what], atol=1e-12, rtol=1e-10)


class Sizes(TorchDispatchMode):
    """Notes the bytes of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and not tensor.is_sparse:
                storage = tensor.untyped_storage()
                self.made[storage.data_ptr()] = max(storage.nbytes(), self.made.get(storage.data_ptr(), 0))
        return result


@pytest.mark.parametrize("name", MARGINS)
def test_logits_that_grow_from_block_to_block_are_summed_relative_to_the_largest_of_all(name, monkeypatch):
    monkeypatch.setitem(partial_fc.BLOCK_CLASSES, "cpu", 1)
    head = make_head(name, 40, torch.float32)
    with torch.no_grad():  # from -1 to 1 along the embedding; lengths beyond what an exponential takes
        angles = torch.linspace(3.1, 0.1, 40)
        head.weight.zero_()[:, 0] = 300 * angles.cos()
        head.weight[:, 1] = 300 * angles.sin()
    embeddings, labels = torch.eye(D)[[0, 0, 0]] * 2, torch.tensor([0, 39, 20])
    kept = run_step(head, embeddings, labels)
    head.recompute_logits = True
    again = run_step(head, embeddings, labels)
    bias = None if head.bias is None else head.bias.detach()
    expected = reference(name, embeddings, head.weight.detach(), bias, labels)
    for what in ("loss", "embeddings", "weight", *(() if bias is None else ("bias",))):
        scale = expected[what].abs().max().item()
        assert again[what].isfinite().all()
        torch.testing.assert_close(again[what].double(), expected[what], atol=1e-5 * scale, rtol=0)
        torch.testing.assert_close(again[what], kept[what], atol=1e-6 * scale, rtol=0)


@BOTH_WAYS
def test_beside_gradient_and_logits_no_tensor_is_larger_than_a_block(recompute, monkeypatch):
    monkeypatch.setitem(partial_fc.BLOCK_CLASSES, "cpu", 64)
    head = PartialFC(ArcFace(), 256, 8192, recompute_logits=recompute)
    embeddings, labels = torch.randn(4, 256, requires_grad=True), torch.arange(4)
    with Sizes() as sizes:
        head(embeddings, labels).backward()
    weights, logits, block = 4 * 256 * 8192, 4 * 4 * 8192, 4 * 256 * 64
    of_step = {pointer: size for pointer, size in sizes.made.items() if pointer != head.weight.data_ptr()}
    large = sorted((size for size in of_step.values() if size > block), reverse=True)
    assert large == ([weights] if recompute else [weights, logits])


@BOTH_WAYS
def test_with_a_sample_of_the_classes_nothing_is_as_large_as_all_weights(recompute, monkeypatch):
    monkeypatch.setitem(partial_fc.BLOCK_CLASSES, "cpu", 64)
    head = PartialFC(ArcFace(), 256, 8192, sample_rate=0.125, recompute_logits=recompute)
    embeddings, labels = torch.randn(4, 256, requires_grad=True), torch.arange(4)
    with Sizes() as sizes:
        head(embeddings, labels).backward()
    of_sample, logits, block, draws = 4 * 256 * 1024, 4 * 4 * 1024, 4 * 256 * 64, 8 * 8193
    of_step = {pointer: size for pointer, size in sizes.made.items() if pointer != head.weight.data_ptr()}
    assert sorted(of_step.values())[-1] == of_sample
    assert all(size <= max(logits, block, draws) for size in sorted(of_step.values())[:-1])
    gradient = head.weight.grad
    assert gradient.is_sparse and gradient.is_coalesced() and gradient.values().shape == (1024, 256)


@pytest.mark.parametrize("name", MARGINS)
def test_class_weights_looked_up_beside_a_sample_have_sparse_gradients_of_the_same_rows(name):
    dense, sampled = make_head(name, 40, torch.float64), make_head(name, 40, torch.float64, rate=0.5)
    labels = torch.tensor([3, 3, 39, -1])
    for head in (dense, sampled):
        (head.weights_of(labels).square().sum(1) * torch.arange(4)).sum().backward()
    looked_up = sampled.weight.grad
    assert looked_up.is_sparse and set(looked_up._indices()[0].tolist()) == {3, 39}  # no other class is updated
    assert torch.equal(looked_up.to_dense(), dense.weight.grad)
    state = torch.get_rng_state()
    alone = run_step(sampled, torch.ones(4, D), labels)["weight"]
    torch.set_rng_state(state)
    sampled.zero_grad()
    terms = sampled(torch.ones(4, D), labels), (sampled.weights_of(labels).square().sum(1) * torch.arange(4)).sum()
    sum(terms).backward()
    assert sampled.weight.grad.is_sparse
    torch.testing.assert_close(sampled.weight.grad.to_dense(), alone + dense.weight.grad)


@BOTH_WAYS
@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_classes_that_look_like_the_samples_own_are_left_out_of_its_softmax(name, recompute, monkeypatch):
    monkeypatch.setitem(partial_fc.BLOCK_CLASSES, "cpu", 7)
    head = make_head(name, 23, torch.float64)
    head.interclass_filtering_threshold, head.recompute_logits = 0.3, recompute
    embeddings, labels = batch(0, 23)
    embeddings[0] = head.weight.detach()[labels[0]]  # on its own class, which is never left out
    weights = head.weight.detach()
    step = run_step(head, embeddings, labels)
    leaves = [tensor.clone().requires_grad_() for tensor in (embeddings, weights)]
    losses, left_out = [], 0
    for embedding, label in zip(leaves[0], labels.tolist()):
        if label < 0:
            continue
        cosines = torch.cosine_similarity(embedding[None], leaves[1])
        kept = cosines <= 0.3
        kept[label] = True
        left_out += int((~kept).sum())
        logits = head.margin(cosines[None], torch.tensor([label]))[0]
        losses.append(torch.logsumexp(logits[kept], 0) - logits[label])
    expected = torch.stack(losses).mean()
    of_embeddings, of_weights = torch.autograd.grad(expected, leaves)
    assert left_out > 5
    torch.testing.assert_close(step["loss"], expected.detach(), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(step["embeddings"], of_embeddings, atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(step["weight"], of_weights, atol=1e-10, rtol=1e-9)


def test_a_second_backward_pass_is_refused_unless_logits_are_computed_again():
    head = make_head("arcface", 10, torch.float32)
    embeddings, labels = batch(0, 10)
    loss = head(embeddings, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
    head.recompute_logits = True
    loss = head(embeddings, labels)
    first, second = (torch.autograd.grad(loss, head.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="sample_rate is 0"):
        PartialFC(ArcFace(), D, 10, sample_rate=0)
    with pytest.raises(UserError, match="num_classes is 0"):
        PartialFC(ArcFace(), D, 0)
    with pytest.raises(UserError, match="no bias"):
        PartialFC(CosFace(), D, 10, bias=True)
    with pytest.raises(UserError, match="the loss is softmax"):
        PartialFC(Softmax(), D, 10, interclass_filtering_threshold=0.4)
    with pytest.raises(ValueError, match=r"expected \(B, 6\)"):
        PartialFC(ArcFace(), D, 10)(torch.randn(3, D), torch.tensor([[0], [1], [2]]))
    with pytest.raises(UserError, match="label -2"):
        PartialFC(ArcFace(), D, 10)(torch.randn(1, D), torch.tensor([-2]))
