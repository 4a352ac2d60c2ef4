"""Margins and classifiers on the device against plain formulas on the CPU in float64."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from ci.gpu.report import Error, Report, difference
from core.engine.optimization import build_optimizer
from core.engine.precision import float32_products
from core.engine.row_optimizers import RowAdamW, RowSGD
from core.heads import PartialFC
from core.heads.frozen_classifier import FrozenClassifier
from core.heads.margins import ArcFace, CosFace, Margin, Softmax
from core.settings import Settings

MARGINS: tuple[Margin, ...] = (ArcFace(64.0, 0.5), CosFace(64.0, 0.4), Softmax())
CLOSE, ROUNDED = 2e-4, 2e-2
"""Of float32 with logits up to 64, as a share of the largest number, and of products of TF32."""


def plain_loss(
    margin: Margin,
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    threshold: float = math.inf,
) -> Tensor:
    """Mean cross-entropy with the margin's formula written out; labels below 0 are left out.

    So are, sample by sample, other classes whose cosine is above `threshold`.
    """
    if not margin.normalized:
        logits = embeddings @ weight.T + (0 if bias is None else bias)
        return cross_entropy(logits, labels, ignore_index=-1)
    cosines = normalize(embeddings) @ normalize(weight).T
    own = one_hot(labels.clamp(min=0), len(weight)).bool()
    if isinstance(margin, ArcFace):
        with_margin = torch.cos(torch.acos(cosines.clamp(-1 + 1e-9, 1 - 1e-9)) + margin.m)
    else:
        with_margin = cosines - margin.m
    logits = margin.s * torch.where(own, with_margin, cosines)
    return cross_entropy(logits.masked_fill((cosines > threshold) & ~own, -math.inf), labels, ignore_index=-1)


def dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def check_margin(margin: Margin, device: torch.device) -> dict[str, Error]:
    """Values and derivatives at cosines from -0.999 to 0.999."""
    results = []
    for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        cosines = torch.linspace(-0.999, 0.999, 4001, dtype=dtype, device=place, requires_grad=True)
        values = margin.target_logits(cosines)
        results.append((values, *torch.autograd.grad(values.sum(), cosines)))
    (values, slopes), (expected, expected_slopes) = results
    angles = torch.acos(torch.linspace(-0.999, 0.999, 4001, dtype=torch.float64))
    formula = margin.s * torch.cos(angles + margin.m) if isinstance(margin, ArcFace) else expected
    return {
        "values": difference(values, formula, 1e-5),
        "slopes": difference(slopes, expected_slopes, 1e-3),
    }


def check_head(
    margin: Margin,
    rate: float,
    bias: bool,
    recompute: bool,
    device: torch.device,
    num_classes: int,
    size: int,
    batch: int,
    close: float = CLOSE,
) -> dict[str, Error]:
    """Loss and gradients of a partial FC; of a sampled one over the classes that got a gradient."""
    torch.manual_seed(0)
    head = PartialFC(margin, size, num_classes, rate, bias, recompute_logits=recompute)
    embeddings = torch.randn(batch, size)
    labels = torch.randint(num_classes, (batch,))
    labels[0] = -1
    with torch.no_grad():
        head.weight.normal_(0, 0.05)
    weight, offsets = (None if p is None else p.detach().double().clone() for p in (head.weight, head.bias))
    head.to(device)
    mine = embeddings.to(device, copy=True).requires_grad_()
    loss = head(mine, labels.to(device))
    loss.backward()
    of_weight = dense(head.weight.grad).cpu()
    used = torch.arange(num_classes) if rate == 1.0 else torch.nonzero(of_weight.abs().sum(1)).flatten()
    columns = torch.full((num_classes + 1,), -1)
    columns[used] = torch.arange(len(used))
    leaves = [embeddings.double().requires_grad_(), weight[used].requires_grad_()]
    if offsets is not None:
        leaves.append(offsets[used].requires_grad_())
    expected = plain_loss(margin, leaves[0], leaves[1], leaves[2] if bias else None, columns[labels])
    gradients = torch.autograd.grad(expected, leaves)
    errors = {
        "loss": difference(loss, expected, close / 20),
        "gradient of embeddings": difference(mine.grad, gradients[0], close),
        "gradient of weights": difference(of_weight[used], gradients[1], close),
        "classes": Error(abs(len(used) - max(int(rate * num_classes), 1)), 0.0),
    }
    if bias:
        errors["gradient of bias"] = difference(dense(head.bias.grad).cpu()[used], gradients[2], close)
    return errors


def check_filtered(device: torch.device, size: int) -> dict[str, Error]:
    """A partial FC that leaves classes with a cosine above a threshold out of a sample's softmax."""
    torch.manual_seed(0)
    num_classes, threshold = 40, 0.2
    head = PartialFC(MARGINS[1], size, num_classes, interclass_filtering_threshold=threshold)
    embeddings, labels = torch.randn(24, size), torch.randint(num_classes, (24,))
    with torch.no_grad():
        head.weight.normal_()
    mine, plain = (embeddings.to(*place, copy=True).requires_grad_() for place in ((device,), ("cpu", torch.float64)))
    weight = head.weight.detach().double()
    expected, whole = (plain_loss(MARGINS[1], plain, weight, None, labels, each) for each in (threshold, math.inf))
    if expected.item() == whole.item():
        raise AssertionError("no cosine is above the threshold")
    expected.backward()
    loss = head.to(device)(mine, labels.to(device))
    loss.backward()
    return {
        "loss": difference(loss, expected, CLOSE / 20),
        "gradient of embeddings": difference(mine.grad, plain.grad, CLOSE),
    }


def check_rounded(device: torch.device, num_classes: int, size: int, batch: int) -> dict[str, Error]:
    """As the trainer computes it where the network works in half precision."""
    with float32_products(device, "bf16"):
        return check_head(MARGINS[0], 1.0, False, False, device, num_classes, size, batch, ROUNDED)


def check_frozen(device: torch.device, num_classes: int, size: int, batch: int) -> dict[str, Error]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((num_classes, size), dtype=np.float32)
    head = FrozenClassifier(CosFace(30.0, 0.0), weight).to(device)
    embeddings = torch.from_numpy(rng.standard_normal((batch, size), dtype=np.float32))
    labels = torch.from_numpy(rng.integers(-1, num_classes, batch))
    mine, plain = (embeddings.to(*place, copy=True).requires_grad_() for place in ((device,), ("cpu", torch.float64)))
    loss = head(mine, labels.to(device))
    loss.backward()
    expected = plain_loss(CosFace(30.0, 0.0), plain, torch.from_numpy(weight).double(), None, labels)
    expected.backward()
    rows = torch.from_numpy(weight)[labels] * (labels >= 0)[:, None]
    return {
        "loss": difference(loss, expected, 1e-5),
        "gradient of embeddings": difference(mine.grad, plain.grad, CLOSE),
        "rows": difference(head.weights_of(labels.to(device)), rows, 0.0),
    }


def cases() -> Iterator[tuple[str, Margin, float, bool, bool]]:
    for margin in MARGINS:
        for rate in (1.0, 0.3):
            yield f"partial FC, {type(margin).__name__}, rate {rate}", margin, rate, False, False
    for rate in (1.0, 0.3):
        yield f"partial FC, Softmax with bias, rate {rate}", Softmax(), rate, True, False
        yield f"partial FC, ArcFace, logits computed again, rate {rate}", MARGINS[0], rate, False, True
        yield f"partial FC, Softmax with bias, logits computed again, rate {rate}", Softmax(), rate, True, True


def check_rows_update(optimizer: type[torch.optim.Optimizer], device: torch.device) -> dict[str, Error]:
    """Three steps of an optimiser for sparse gradients, weights and state, from gradients of other rows each time."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 8, generator=generator)
    gradients = [
        torch.sparse_coo_tensor(
            torch.randperm(50, generator=generator)[:20].sort().values[None],
            torch.randn(20, 8, generator=generator), (50, 8), is_coalesced=True, check_invariants=False,
        )
        for _ in range(3)
    ]  # fmt: skip
    results = []
    for place in (device, torch.device("cpu")):
        weight = nn.Parameter(start.to(place, copy=True))
        settings = Settings(optimizer="sgd" if optimizer is RowSGD else "adamw", lr=0.1)
        made = build_optimizer(settings, [weight])
        for gradient in gradients:
            weight.grad = gradient.to(place)
            made.step()
        results.append((weight, *(value for value in made.state[weight].values() if value.shape == weight.shape)))
    names = ("weight", "first moment", "second moment")
    return {name: difference(one, other, 1e-5) for name, one, other in zip(names, *results)}


def check_heads(report: Report, device: torch.device, quick: bool) -> None:
    """Margins, partial FC and frozen classifiers."""
    num_classes, size, batch = (500, 16, 24) if quick else (150_000, 256, 128)  # more than one block of classes
    for margin in MARGINS:
        report.check("heads", f"margin {type(margin).__name__}", lambda margin=margin: check_margin(margin, device))
    for name, *case in cases():
        work = (*case, device, num_classes, size, batch)
        report.check("heads", name, lambda work=work: check_head(*work))
    report.check(
        "heads", "partial FC, ArcFace, beside half precision", lambda: check_rounded(device, num_classes, size, batch)
    )
    report.check("heads", "partial FC, CosFace, filtered", lambda: check_filtered(device, size))
    for optimizer in (RowSGD, RowAdamW):
        work = partial(check_rows_update, optimizer, device)
        report.check("heads", f"update of sampled rows, {optimizer.__name__}", work)
    report.check("heads", "frozen classifier", lambda: check_frozen(device, num_classes, size, batch))
    report.check("heads", "gradient at equal vectors", lambda: check_equal_vectors(device))


def check_equal_vectors(device: torch.device) -> dict[str, Error]:
    """An embedding that is its class's weight: the derivative of ArcFace must stay finite."""
    head = PartialFC(ArcFace(64.0, 0.5), 8, 4).to(device)
    embeddings = head.weight.detach().clone().requires_grad_()
    head(embeddings, torch.arange(4, device=device)).backward()
    finite = torch.isfinite(embeddings.grad).all() and torch.isfinite(dense(head.weight.grad)).all()
    return {"finite": Error(0.0 if finite.item() else math.inf, 0.0)}
