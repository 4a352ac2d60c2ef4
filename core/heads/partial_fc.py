"""Softmax cross-entropy over more classes than one device can hold: partial FC, its classes sharded over the ranks.

Embeddings `(B, D)` and labels `(B,)` of this rank give the mean loss `()` over the samples of all ranks.

Shapes: B samples (of this rank, or of all ranks once gathered), D embedding size, C classes of this rank that take part
in the step, W ranks.
"""

import math
from collections.abc import Iterator

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


class _ShardedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of `margin(embeddings @ weight.T + bias)`, this rank holding C of the softmax's classes.

    `classes` `(C,)` are the rows of `weight` and `bias` that take part, in order, or None for all; with them the
    gradients of the two are sparse, of these rows alone. `targets` `(B,)` is the column of a sample's class, -1 if this
    rank does not hold it; samples outside `valid` `(B,)` are ignored; `with_gradient` says whether a backward pass may
    follow. For a margin on cosines the embeddings come normalised and the weights as they are: their norms scale the
    columns of the logits, so that no normalised copy of the weights is made. Cosines of other classes above `limit`, if
    there is one, are left out of the softmax.

    The one `(B, C)` buffer holds the logits, then the probabilities, then the gradient. The backward pass uses it up;
    autograd's version check refuses a second one. The gradient of the embeddings is this rank's share, times W.
    """

    @staticmethod
    def forward(ctx, embeddings, weight, bias, classes, targets, valid, margin, limit, group, with_gradient):
        logits = weight.new_empty(len(embeddings), len(weight) if classes is None else len(classes))
        inverse_norms = weight.new_empty(logits.shape[1]) if margin.normalized else None
        for block in _blocks(logits):
            part, rows = logits[:, block], _rows(weight, classes, block)
            if bias is None:
                torch.mm(embeddings, rows.T, out=part)
            else:
                torch.addmm(_rows(bias, classes, block), embeddings, rows.T, out=part)
            if inverse_norms is not None:
                torch.linalg.vector_norm(rows, dim=1, out=inverse_norms[block]).clamp_(min=MIN_NORM).reciprocal_()
                part *= margin.s * inverse_norms[block]

        held, columns, slopes = targets >= 0, targets.clamp(min=0).unsqueeze(1), None
        if logits.shape[1] > 0:
            own = logits.gather(1, columns).squeeze(1)
            with_margin, slopes = _value_and_slope(margin.target_logits, own / margin.s, with_gradient)
            if limit is not None:
                for block in _blocks(logits):
                    logits[:, block].masked_fill_(logits[:, block] > limit * margin.s, -math.inf)
            # After the filter: the first column of a sample whose class another rank holds stays filtered.
            own = torch.where(held, with_margin, logits.gather(1, columns).squeeze(1))
            logits.scatter_(1, columns, own.unsqueeze(1))
            maxima = logits.amax(1)
        else:
            own = logits.new_zeros(len(logits))
            maxima = torch.full_like(own, -math.inf)
        # Of an ignored sample all classes may be left out: a difference to -inf would not be a number.
        all_reduce_(maxima.clamp_(min=torch.finfo(maxima.dtype).min), "max", group)
        sums = torch.zeros_like(own)
        for block in _blocks(logits):
            sums += logits[:, block].sub_(maxima.unsqueeze(1)).exp_().sum(1)
        own = torch.where(held, own - maxima, 0.0)
        sums, own = all_reduce_(torch.stack([sums, own]), "sum", group)
        num_valid = valid.sum(dtype=logits.dtype).clamp(min=1.0)
        loss = torch.where(valid, sums.log() - own, 0.0).sum() / num_valid

        if with_gradient:
            logits *= torch.where(valid, 1.0 / (num_valid * sums), 0.0).unsqueeze(1)
            if slopes is not None:
                own = logits.gather(1, columns).squeeze(1)
                own = torch.where(held, (own - 1.0 / num_valid) * slopes / margin.s, own)
                logits.scatter_(1, columns, own.unsqueeze(1))
            ctx.save_for_backward(logits, embeddings, weight, classes, inverse_norms)
            ctx.margin_scale, ctx.num_ranks = margin.s, world_size(group)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # pyrefly: ignore[bad-override]  (once_differentiable hides the signature)
        (loss_gradient,) = gradients
        gradient, embeddings, weight, classes, inverse_norms = ctx.saved_tensors
        of_embeddings = of_weight = of_bias = None
        with torch.autocast(loss_gradient.device.type, enabled=False):
            gradient *= loss_gradient if inverse_norms is None else loss_gradient * ctx.margin_scale * inverse_norms
            if ctx.needs_input_grad[0]:
                of_embeddings = torch.zeros_like(embeddings)
            if ctx.needs_input_grad[1]:
                of_weight = weight.new_empty(gradient.shape[1], weight.shape[1])
            for block in _blocks(gradient):
                part, rows = gradient[:, block], _rows(weight, classes, block)
                if of_embeddings is not None:
                    of_embeddings.addmm_(part, rows)
                if of_weight is not None:
                    of_rows = torch.mm(part.T, embeddings, out=of_weight[block])
                    if inverse_norms is not None:
                        along = torch.linalg.vecdot(of_rows, rows).mul_(inverse_norms[block].square())
                        of_rows.addcmul_(rows, along.unsqueeze(1), value=-1.0)
            if of_embeddings is not None:
                of_embeddings *= ctx.num_ranks
            if ctx.needs_input_grad[2]:
                of_bias = gradient.sum(0)
        if classes is not None:
            of_weight, of_bias = (_sparse(rows, classes, len(weight)) for rows in (of_weight, of_bias))
        return of_embeddings, of_weight, of_bias, *[None] * 7


def _blocks(logits: torch.Tensor) -> Iterator[slice]:
    """Slices of the columns of the logits `(B, C)`."""
    num_classes, step = logits.shape[1], BLOCK_CLASSES[logits.device.type]
    for start in range(0, num_classes, step):
        yield slice(start, min(start + step, num_classes))


def _rows(tensor: torch.Tensor, classes: torch.Tensor | None, block: slice) -> torch.Tensor:
    """The rows of a block of the classes that take part."""
    return tensor[block] if classes is None else tensor.index_select(0, classes[block])


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

    Memory: one `(B, C)` buffer, B counting all ranks, for logits and gradient, and the gradient of the weights, of the
    rows that take part. With all classes that gradient is dense, with a sample of them sparse (COO, coalesced): step,
    gradient and update then cost what the sample costs (the optimisers are in `core.engine.row_optimizers`).

    Gradients: those of `weight` and `bias` are the exact derivatives of the global mean and must not be averaged over
    ranks (keep the module out of DistributedDataParallel). That of the embeddings is W times the derivative, so that
    the average that DistributedDataParallel takes over the ranks is exact. One backward pass for one forward pass.

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
        rows = embedding(torch.where(held, columns, 0), weight, sparse=self.sample_rate < 1.0 and self.num_local > 0)
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
