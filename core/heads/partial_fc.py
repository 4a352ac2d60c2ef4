"""Softmax cross-entropy over more classes than one device can hold: partial FC, its classes sharded over the ranks.

Embeddings `(B, D)` and labels `(B,)` of this rank give the mean loss `()` over the samples of all ranks.

Shapes: B samples (of this rank, or of all ranks once gathered), D embedding size, C classes of this rank that take part
in the step, W ranks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, normalize

from core.errors import UserError
from core.heads.margins import Margin
from core.parallel.collectives import (
    all_gather_rows,
    all_reduce_,
    broadcast_object,
    rank,
    row_counts,
    sum_over_ranks,
    world_size,
)

__all__ = ["PartialFC", "require_filter"]

INIT_STD = 0.01
"""Standard deviation of the initial class weights of margins on cosines, as in arcface_torch."""
ROWS_PER_BLOCK = 1024
"""Rows of the global weight matrix that are drawn from one seed."""
BLOCK_CLASSES = {"cpu": 4096, "cuda": 65536}
"""Classes whose weights are read once for all that a pass does with them: on a CPU they stay in its cache. No temporary
tensor is larger than a block."""
MIN_NORM = 1e-12
"""Class weights shorter than this are divided by it, as `torch.nn.functional.normalize` does."""


@dataclass(frozen=True)
class _Logits:
    """The logits `(B, C)` of this rank's classes that take part, written a block of classes at a time.

    `classes` `(C,)` are the rows of `weight` and `bias` that take part, in order, or None for all. `targets` `(B,)` is
    the column of a sample's class, -1 if this rank does not hold it. For a margin on cosines the embeddings come
    normalised and the weights as they are: their `inverse_norms` `(C,)` scale the columns, so that no normalised copy
    of the weights is made. Cosines of other classes above `limit`, if there is one, are left out: -inf.
    """

    embeddings: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    classes: torch.Tensor | None
    targets: torch.Tensor
    inverse_norms: torch.Tensor | None
    margin: Margin
    limit: float | None

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.weight if self.classes is None else self.classes)

    def blocks(self) -> Iterator[slice]:
        """Slices of the C columns."""
        step = BLOCK_CLASSES[self.weight.device.type]
        for start in range(0, self.num_classes, step):
            yield slice(start, min(start + step, self.num_classes))

    def rows(self, tensor: torch.Tensor, block: slice) -> torch.Tensor:
        """Those of a block's classes, of the weights or the biases."""
        return tensor[block] if self.classes is None else tensor.index_select(0, self.classes[block])

    def own_columns(self, block: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each sample whether its class is in the block, `(B,)`, and in which column, `(B, 1)`; 0 if it is not."""
        here = (self.targets >= block.start) & (self.targets < block.stop)
        return here, torch.where(here, self.targets - block.start, 0).unsqueeze(1)

    def write(self, block: slice, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the logits of a block with the weights `rows` to `out`.

        Returns the samples' logits with their own classes before the margin, `(B,)`; 0 if these are in other blocks.
        """
        if self.bias is None:
            torch.mm(self.embeddings, rows.T, out=out)
        else:
            torch.addmm(self.rows(self.bias, block), self.embeddings, rows.T, out=out)
        if self.inverse_norms is not None:
            out *= self.margin.s * self.inverse_norms[block]
        here, columns = self.own_columns(block)
        own = out.gather(1, columns).squeeze(1)
        if self.limit is not None:
            out.masked_fill_(out > self.limit * self.margin.s, -math.inf)
        # After the filter, which does not apply to own classes; other samples keep what is in their first column.
        with_margin = self.margin.target_logits(own / self.margin.s)
        out.scatter_(1, columns, torch.where(here.unsqueeze(1), with_margin.unsqueeze(1), out.gather(1, columns)))
        return torch.where(here, own, 0.0)


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of the logits of all ranks (`_Logits` says of what), this rank holding C of the columns.

    Samples outside `valid` `(B,)` are ignored; `with_gradient` says whether a backward pass may follow. With `classes`
    the gradients of weight and bias are sparse, of these rows alone. That of the embeddings is this rank's share, times
    W.

    A `(B, C)` buffer holds the logits, then their exponentials, then the gradient. The backward pass uses it up;
    autograd's version check refuses a second one. With `recompute` it is one block wide and not kept: the forward pass
    has a running maximum and sum (Milakov and Gimelshein, "Online normalizer calculation for softmax", arXiv
    1805.02867), the backward pass makes each block's logits again.
    """

    @staticmethod
    def forward(ctx, embeddings, weight, bias, classes, targets, valid, margin, limit, recompute, group, with_gradient):
        inverse_norms = weight.new_empty(len(weight if classes is None else classes)) if margin.normalized else None
        logits = _Logits(embeddings, weight, bias, classes, targets, inverse_norms, margin, limit)
        buffer = _buffer(logits, recompute)
        own = embeddings.new_zeros(len(embeddings))
        sums = torch.zeros_like(own)
        # Finite: where all classes of an ignored sample are left out, a difference to -inf would not be a number.
        maxima = torch.full_like(own, torch.finfo(own.dtype).min)
        for block in logits.blocks():
            rows, part = logits.rows(weight, block), _part(buffer, block, recompute)
            if inverse_norms is not None:
                torch.linalg.vector_norm(rows, dim=1, out=inverse_norms[block]).clamp_(min=MIN_NORM).reciprocal_()
            own += logits.write(block, rows, part)
            before, maxima = maxima, torch.maximum(maxima, part.amax(1))
            if recompute:
                sums = sums * (before - maxima).exp() + _exponentials(part, maxima).sum(1)
        before, maxima = maxima, all_reduce_(maxima.clone(), "max", group)
        if recompute:
            sums *= (before - maxima).exp()
        else:
            for block in logits.blocks():
                sums += _exponentials(buffer[:, block], maxima).sum(1)

        with_margin, slopes = _value_and_slope(margin.target_logits, own / margin.s, with_gradient)
        own = torch.where(targets >= 0, with_margin - maxima, 0.0)
        sums, own = all_reduce_(torch.stack([sums, own]), "sum", group)
        num_valid = valid.sum(dtype=own.dtype).clamp(min=1.0)
        loss = torch.where(valid, sums.log() - own, 0.0).sum() / num_valid

        if with_gradient:
            shares = torch.where(valid, 1.0 / (num_valid * sums), 0.0)
            ctx.save_for_backward(
                embeddings, weight, bias, classes, targets, inverse_norms,
                None if recompute else buffer, maxima, shares, slopes, 1.0 / num_valid,
            )  # fmt: skip
            ctx.margin, ctx.limit, ctx.num_ranks = margin, limit, world_size(group)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # pyrefly: ignore[bad-override]  (once_differentiable hides the signature)
        (loss_gradient,) = gradients
        embeddings, weight, bias, classes, targets, inverse_norms, *saved = ctx.saved_tensors
        buffer, maxima, shares, slopes, of_sample = saved
        logits = _Logits(embeddings, weight, bias, classes, targets, inverse_norms, ctx.margin, ctx.limit)
        recompute = buffer is None
        of_embeddings = of_weight = of_bias = None
        with torch.autocast(loss_gradient.device.type, enabled=False):
            if recompute:
                buffer = _buffer(logits, recompute)
            if ctx.needs_input_grad[0]:
                of_embeddings = torch.zeros_like(embeddings)
            if ctx.needs_input_grad[1]:
                of_weight = weight.new_empty(logits.num_classes, weight.shape[1])
            if ctx.needs_input_grad[2]:
                of_bias = weight.new_empty(logits.num_classes)
            for block in logits.blocks():
                rows, part = logits.rows(weight, block), _part(buffer, block, recompute)
                if recompute:
                    logits.write(block, rows, part)
                    _exponentials(part, maxima)
                part *= shares.unsqueeze(1)
                here, columns = logits.own_columns(block)
                own = part.gather(1, columns).squeeze(1)
                own = torch.where(here, (own - of_sample) * slopes / ctx.margin.s, own)
                part.scatter_(1, columns, own.unsqueeze(1))
                part *= loss_gradient if inverse_norms is None else loss_gradient * ctx.margin.s * inverse_norms[block]
                if of_embeddings is not None:
                    of_embeddings.addmm_(part, rows)
                if of_weight is not None:
                    of_rows = torch.mm(part.T, embeddings, out=of_weight[block])
                    if inverse_norms is not None:
                        along = torch.linalg.vecdot(of_rows, rows).mul_(inverse_norms[block].square())
                        of_rows.addcmul_(rows, along.unsqueeze(1), value=-1.0)
                if of_bias is not None:
                    torch.sum(part, 0, out=of_bias[block])
            if of_embeddings is not None:
                of_embeddings *= ctx.num_ranks
        if classes is not None:
            of_weight, of_bias = (_sparse(rows, classes, len(weight)) for rows in (of_weight, of_bias))
        return of_embeddings, of_weight, of_bias, *[None] * 8


def _buffer(logits: _Logits, recompute: bool) -> torch.Tensor:
    """Room for all logits `(B, C)`, or for one block of them."""
    width = min(logits.num_classes, BLOCK_CLASSES[logits.weight.device.type]) if recompute else logits.num_classes
    return logits.weight.new_empty(len(logits.embeddings), width)


def _part(buffer: torch.Tensor, block: slice, recompute: bool) -> torch.Tensor:
    """The block's columns of a `_buffer`."""
    return buffer[:, : block.stop - block.start] if recompute else buffer[:, block]


def _exponentials(logits: torch.Tensor, maxima: torch.Tensor) -> torch.Tensor:
    """Those of the logits `(B, c)` less the maxima `(B,)`, in their place."""
    return logits.sub_(maxima.unsqueeze(1)).exp_()


def _sparse(rows: torch.Tensor | None, classes: torch.Tensor, num_classes: int) -> torch.Tensor | None:
    """The sparse tensor of `num_classes` rows whose rows `classes`, rising, are `rows`, which are not copied."""
    if rows is None:
        return None
    shape = (num_classes, *rows.shape[1:])
    return torch.sparse_coo_tensor(classes.unsqueeze(0), rows, shape, is_coalesced=True, check_invariants=False)


def _value_and_slope(function, points: torch.Tensor, needs_slope: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`function(points)`, elementwise, and its derivative at each point."""
    if not needs_slope:
        return function(points), None
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = function(points)
        (slopes,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), slopes


def require_filter(margin: Margin, threshold: float | None) -> None:
    """`UserError` for an `interclass_filtering_threshold` beside a margin that does not work on cosines."""
    if threshold is not None and not margin.normalized:
        raise UserError("interclass_filtering_threshold is one of cosines, but the loss is softmax: leave it out")


class PartialFC(nn.Module):
    """The classifier and its loss: embeddings `(B, D)` and labels `(B,)` of this rank to the global mean loss `()`.

    Source: An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by
    Partial FC", CVPR 2022, arXiv 2203.15565; margins as in `core.heads.margins`.

    Sharded: the class weights `(num_classes, D)`, and the bias, along the classes, in the layout of `torch.chunk` and
    DTensor's `Shard(0)`: every rank holds `ceil(num_classes / W)` rows until none are left, so that the last ranks may
    hold fewer or none. `weight` `(num_local, D)` and `bias` `(num_local,)` or None are this rank's rows, those of the
    classes from `class_start` on. Logits are never gathered.

    Collectives, with more than one rank: forward 3 gathers (batch sizes, embeddings, labels) and 2 all-reduces (`(B,)`
    and `(2, B)`), backward 1 reduce-scatter (gradient of the embeddings), constructor 1 broadcast of a seed.

    Memory: one `(B, C)` buffer, B counting all ranks, for logits and gradient, or with `recompute_logits` one block of
    it, and the gradient of the weights, of the rows that take part. With all classes that gradient is dense, with a
    sample of them sparse (COO, rows in order): step, gradient and update then cost what the sample costs (the
    optimisers are in `core.engine.row_optimizers`).

    Gradients: those of `weight` and `bias` are the exact derivatives of the global mean and must not be averaged over
    ranks (keep the module out of DistributedDataParallel). That of the embeddings is W times the derivative, so that
    the average that DistributedDataParallel takes over the ranks is exact. One backward pass for one forward pass,
    unless logits are computed again.

    Dtype: all in the weights' dtype, float32 unless the module is converted, under autocast too.

    Not done: labels are not changed, no optimiser is touched, the host does not wait for CUDA, except for the batch
    sizes in a group of nccl alone (see `row_counts`) and for the number of positives if the batch of all ranks is
    larger than `int(sample_rate * num_local)`.

    Departures from arcface_torch: any batch size on any rank at any step; DTensor's layout of the classes; ignored
    samples are not counted in the mean; log-sum-exp in place of the logarithm of a clamped probability; true
    derivatives of the margins; initial weights that do not depend on W.

    The initial weights come from one draw of the first rank's default CPU generator: normal with standard deviation
    0.01 for margins on cosines, `nn.Linear`'s uniform +-1/sqrt(D), bias included, for the plain softmax.

    Args:
        margin: one of `core.heads.margins`.
        embedding_size: D.
        num_classes: classes of all ranks together.
        sample_rate: below 1, a step uses the classes of the batch that this rank holds and, up to
            `int(sample_rate * num_local)` together, others drawn at random from the device's default generator. The
            classes that are not used have no part in the gradient. May be changed between steps.
        bias: a bias for every class; plain softmax only.
        interclass_filtering_threshold: cosines with other classes above it are taken for mistakes of the labels (two
            classes of one person) and left out of a sample's softmax, where arcface_torch sets them to 0; None: none.
        recompute_logits: keep no logits for the backward pass, but compute each block again: the same up to rounding,
            with less memory and a third more products. May be changed between steps.
        group: process group of the ranks; None: the default one, or a single process if none is initialised.

    Raises:
        UserError: for a number of classes, a rate or a bias out of range.

    """

    def __init__(
        self,
        margin: Margin,
        embedding_size: int,
        num_classes: int,
        sample_rate: float = 1.0,
        bias: bool = False,
        group: dist.ProcessGroup | None = None,
        interclass_filtering_threshold: float | None = None,
        recompute_logits: bool = False,
    ):
        super().__init__()
        if num_classes < 1:
            raise UserError(f"num_classes is {num_classes}; a classifier needs at least 1 class")
        if not 0.0 < sample_rate <= 1.0:
            raise UserError(f"sample_rate is {sample_rate}; it must be above 0 and at most 1")
        if bias and margin.normalized:
            raise UserError(f"{margin} works on cosines, which take no bias: leave the bias out")
        require_filter(margin, interclass_filtering_threshold)
        self.margin = margin
        self.embedding_size = embedding_size
        self.num_classes = num_classes
        self.sample_rate = sample_rate
        self.interclass_filtering_threshold = interclass_filtering_threshold
        self.recompute_logits = recompute_logits
        self.group = group
        rows_per_rank = math.ceil(num_classes / world_size(group))
        self.class_start = min(rank(group) * rows_per_rank, num_classes)
        self.num_local = min(rows_per_rank, num_classes - self.class_start)
        self.weight = nn.Parameter(torch.empty(self.num_local, embedding_size))
        self.bias = nn.Parameter(torch.empty(self.num_local)) if bias else None
        self._initialize()

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss `()` over the samples of all ranks, the same on every rank; 0 if all are ignored.

        `embeddings` `(B, D)`, any floating dtype, not normalised; `labels` `(B,)` global class numbers, -1 for a sample
        to ignore. B may differ between ranks and be 0. A label outside -1 ... num_classes - 1 raises `UserError` on
        every rank; on CUDA it fails a device assertion. Other shapes raise `ValueError`.
        """
        if embeddings.shape[1:] != (self.embedding_size,) or labels.shape != embeddings.shape[:1]:
            raise ValueError(
                f"got embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; "
                f"expected (B, {self.embedding_size}) and (B,)"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.weight.dtype)
            if self.margin.normalized:
                embeddings = normalize(embeddings)
            counts = row_counts(len(labels), labels.device, self.group)
            embeddings = all_gather_rows(embeddings, self.group, counts=counts)
            labels = all_gather_rows(labels.long(), self.group, counts=counts)
            self._check_labels(labels)

            targets = labels - self.class_start
            targets = torch.where((targets >= 0) & (targets < self.num_local), targets, -1)
            classes = None
            if self.sample_rate < 1.0:
                classes, targets = self._sample(targets)
            return _ShardedCrossEntropy.apply(
                embeddings,
                self.weight,
                self.bias,
                classes,
                targets,
                labels >= 0,
                self.margin,
                self.interclass_filtering_threshold,
                self.recompute_logits,
                self.group,
                torch.is_grad_enabled(),
            )

    def weights_of(self, labels: torch.Tensor) -> torch.Tensor:
        """The class weights `(B, D)` of this rank's `labels` `(B,)`, whichever rank holds them; 0 for a label of -1.

        B may differ between ranks. The gradient of `weight` is that of the mean of the ranks' losses, and sparse where
        that of `forward` is.

        Forward 2 gathers (batch sizes, labels) and 1 all-reduce of the rows of all ranks, backward 1 all-reduce.
        """
        counts = row_counts(len(labels), labels.device, self.group)
        columns = all_gather_rows(labels, self.group, counts=counts) - self.class_start
        held = (columns >= 0) & (columns < self.num_local)
        # An empty shard gets a row, so that its rank takes part in the backward pass too.
        weight = self.weight if self.num_local else nn.functional.pad(self.weight, (0, 0, 0, 1))
        # Labels of other ranks are looked up at a class of the batch: a sparse gradient names no class without a part.
        columns = torch.where(held, columns, 0)
        spare = columns.amax() if len(columns) else 0
        sparse = self.sample_rate < 1.0 and self.num_local > 0
        rows = embedding(torch.where(held, columns, spare), weight, sparse=sparse)
        rows = torch.where(held[:, None], rows, 0)
        return sum_over_ranks(rows, self.group).split(counts)[rank(self.group)]

    def extra_repr(self) -> str:
        """What `print` shows of the module."""
        return (
            f"{self.margin}, embedding_size={self.embedding_size}, num_classes={self.num_classes} ({self.num_local} "
            f"here from {self.class_start}), sample_rate={self.sample_rate}, bias={self.bias is not None}"
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draw this rank's rows of the global matrix, in blocks that each have a seed."""
        seed = broadcast_object(torch.randint(2**62, (), device="cpu").item(), self.group)
        generator = torch.Generator()
        bound = 1.0 / math.sqrt(self.embedding_size)
        end = self.class_start + self.num_local
        for block in range(self.class_start // ROWS_PER_BLOCK, math.ceil(end / ROWS_PER_BLOCK)):
            generator.manual_seed(seed + block)
            rows = torch.empty(ROWS_PER_BLOCK, self.embedding_size + 1, device="cpu")
            if self.margin.normalized:
                rows.normal_(0.0, INIT_STD, generator=generator)
            else:
                rows.uniform_(-bound, bound, generator=generator)
            start = block * ROWS_PER_BLOCK
            first, last = max(start, self.class_start), min(start + ROWS_PER_BLOCK, end)
            here, drawn = slice(first - self.class_start, last - self.class_start), rows[first - start : last - start]
            self.weight[here] = drawn[:, :-1]
            if self.bias is not None:
                self.bias[here] = drawn[:, -1]

    @torch.no_grad()
    def whole(self) -> dict[str, torch.Tensor] | None:
        """All ranks' `weight` (num_classes, D) and, if there is one, `bias` (num_classes,); on the first rank alone.

        float32, on the CPU, a copy. Collective, through host memory: no device holds more than its shard.
        """
        size, is_first = world_size(self.group), rank(self.group) == 0
        tensors = {}
        for name, shard in self.named_parameters(recurse=False):
            rows = torch.zeros(math.ceil(self.num_classes / size), *shard.shape[1:])
            rows[: self.num_local] = shard
            blocks = [torch.empty_like(rows) for _ in range(size)] if is_first else None
            if size > 1:
                dist.gather(rows, blocks, group=self.group, group_dst=0)
            else:
                blocks = [rows]
            if blocks is not None:
                tensors[name] = torch.cat(blocks)[: self.num_classes].clone()
        return tensors if is_first else None

    def _check_labels(self, labels: torch.Tensor) -> None:
        wrong = (labels < -1) | (labels >= self.num_classes)
        if labels.is_cuda:
            torch._assert_async(~wrong.any(), f"a label is outside -1 ... {self.num_classes - 1}")
        elif wrong.any():
            raise UserError(
                f"a batch has the label {labels[wrong][0].item()}, but the classifier has num_classes = "
                f"{self.num_classes}, labels -1 (ignored) to {self.num_classes - 1}: give it the number of classes of "
                "the data"
            )

    @torch.no_grad()
    def _sample(self, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This step's classes `(C,)`, local numbers in order, and the targets' `(B,)` positions in it (-1 stays)."""
        held = targets >= 0
        # The entry beyond the last class is for the targets that this rank does not hold.
        priority = torch.rand(self.num_local + 1, device=targets.device)
        priority.index_fill_(0, torch.where(held, targets, self.num_local), 2.0)  # an assignment would wait for CUDA
        priority = priority[:-1]
        num_sampled = int(self.sample_rate * self.num_local)
        if len(targets) > num_sampled:
            num_sampled = max(num_sampled, int((priority == 2.0).sum()))
        classes = priority.topk(num_sampled, sorted=False).indices.sort().values
        return classes, torch.where(held, torch.searchsorted(classes, targets), -1)
