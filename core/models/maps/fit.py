"""Fitting a map of any kind to pairs."""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.backbones.checks import require_positive
from core.errors import UserError
from core.models.maps.error_head import fit_error_head
from core.models.maps.linear import Affine, RidgeProblem, penalty_grid, procrustes
from core.models.maps.map import Map
from core.models.maps.modules import build_error_head, build_module
from core.models.maps.moments import compute_moments
from core.models.maps.network import train_network
from core.models.maps.threads import threads_for_tables
from core.models.maps.vectors import Pairs, Space, Vectors, open_pairs

__all__ = ["KINDS", "MIN_PAIRS", "fit_map", "require_options"]

logger = logging.getLogger(__name__)
MIN_PAIRS = 10
"""Fewer say nothing about a space."""
LEFT_OUT_PAIRS = 2048
"""Up to so many the penalty is chosen by leaving out one pair at a time; of more by generalised cross-validation."""
DEFAULT_RANK = 64
"""Of low-rank maps, as in Drift-Adapter (arXiv 2509.23471)."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What fitting found: the weights of the map's network, and the options that were used."""

    state_dict: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    penalty: float | None = None


def fit_map(
    kind: str,
    source: Vectors,
    target: Vectors,
    labels: np.ndarray | None = None,
    *,
    spaces: tuple[Space, Space] | None = None,
    **options: Any,
) -> Map:
    """Fit the map of a kind that leads from the source's space to the target's, on N pairs of vectors.

    `source` (N, D_s) and `target` (N, D_t) are embeddings of the same images by two models, in the same order, as
    arrays, memory-mapped or not, or as embedding stores; rows are normalised here. Stores know their spaces; those of
    arrays are `spaces`, if given. `labels` (N,), the classes of the images, are used by "mlp" alone. Kinds and options:

    - "procrustes": orthogonal (`core.models.maps.linear`); `centred=True`: about the means, which are mapped too.
    - "ridge": affine; `penalty`: a number, several to choose from by cross-validation, or None for a grid.
    - "low_rank": a ridge of `rank` (64, or the smaller size), with `penalty` as above.
    - "mlp": a ridge and a hidden layer, trained on `labels` (`core.models.maps.network`): `hidden` units, `scale`,
      `num_epoch`, `batch_size`, `lr`, `seed`.

    The map can also predict its errors (`core.models.maps.error_head`), from a second pass over some of the pairs.
    `UserError` for an unknown kind or option, arrays that are no pairs, fewer than ten pairs, and a row without a
    direction.
    """
    require_options(kind, options)
    pairs = open_pairs(source, target, spaces)
    if len(pairs) < MIN_PAIRS:
        raise UserError(f"{len(pairs)} pairs are too few to fit a map: at least {MIN_PAIRS} are needed")
    with threads_for_tables(max(pairs.source_space.size, pairs.target_space.size)):
        fitted = KINDS[kind](pairs, labels, **options)
    module = build_module(kind, pairs.source_space.size, pairs.target_space.size, fitted.options)
    module.load_state_dict(fitted.state_dict, assign=True)
    module.eval().requires_grad_(False)
    error_head = build_error_head(fit_error_head(pairs, module), pairs.source_space.size)
    spaces = pairs.source_space, pairs.target_space
    return Map(kind, *spaces, module, len(pairs), fitted.options, fitted.penalty, error_head)


def require_options(kind: str, names: Iterable[str]) -> None:
    """`UserError` unless there is the kind, and its maps have options of these names."""
    if kind not in KINDS:
        raise UserError(f"there is no kind of map {kind!r}: choose one of {', '.join(KINDS)}")
    parameters = inspect.signature(KINDS[kind]).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind.name == "KEYWORD_ONLY"]
    for name in names:
        if name not in known:
            raise UserError(f"a {kind} map has no option {name!r}: its options are {', '.join(known)}")


def _fit_procrustes(pairs: Pairs, labels: np.ndarray | None, *, centred: bool = False) -> Fitted:
    affine, rank = procrustes(compute_moments(pairs, with_gram=False), centred)
    smaller = min(affine.weight.shape)
    if rank < smaller:
        logger.warning(
            "%d pairs determine %d of %d directions, the others are mapped anyhow", len(pairs), rank, smaller
        )
    return Fitted(_linear_weights(affine), {"centred": bool(centred)})


def _fit_ridge(pairs: Pairs, labels: np.ndarray | None, *, penalty: float | Sequence[float] | None = None) -> Fitted:
    problem, used = _ridge(pairs, penalty)
    return Fitted(_linear_weights(problem.solve(used)), penalty=used)


def _fit_low_rank(
    pairs: Pairs,
    labels: np.ndarray | None,
    *,
    rank: int | None = None,
    penalty: float | Sequence[float] | None = None,
) -> Fitted:
    smaller = min(pairs.source_space.size, pairs.target_space.size)
    rank = min(DEFAULT_RANK, smaller) if rank is None else rank
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= smaller:
        raise UserError(f"rank must be a whole number from 1 to {smaller}, the smaller embedding size, got {rank!r}")
    problem, used = _ridge(pairs, penalty)
    inner, outer = problem.solve_low_rank(used, rank)
    weights = {"0.weight": _tensor(inner.T)} | {f"1.{name}": tensor for name, tensor in _linear_weights(outer).items()}
    return Fitted(weights, {"rank": inner.shape[1]}, used)


def _fit_mlp(
    pairs: Pairs,
    labels: np.ndarray | None,
    *,
    hidden: int = 256,
    scale: float = 12.0,
    num_epoch: int = 10,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
) -> Fitted:
    require_positive(hidden=hidden, num_epoch=num_epoch, batch_size=batch_size)
    for name, value in (("scale", scale), ("lr", lr)):
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UserError(f"{name} must be a number above 0, got {value!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")
    classes = _numbered_classes(labels, len(pairs))
    problem, penalty = _ridge(pairs, None)
    schedule = {"num_epoch": num_epoch, "batch_size": batch_size, "lr": lr, "seed": seed}
    options = {"hidden": hidden, "scale": scale, **schedule}
    weights = train_network(pairs, classes, _linear_weights(problem.solve(penalty)), **options)
    return Fitted(weights, options, penalty)


def _numbered_classes(labels: np.ndarray | None, num_pairs: int) -> np.ndarray:
    """The classes of the pairs (N,), numbered from 0."""
    if labels is None:
        raise UserError("an mlp map is trained on the classes of the images: give their labels, or fit another kind")
    labels = np.asarray(labels)
    if labels.shape != (num_pairs,) or labels.dtype.kind not in "iu":
        raise UserError(f"labels must be {num_pairs} whole numbers, one a pair: got {labels.dtype} {labels.shape}")
    values, classes = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        raise UserError("all labels are the same: an mlp map needs pairs of two or more classes")
    return classes


def _ridge(pairs: Pairs, penalty: float | Sequence[float] | None) -> tuple[RidgeProblem, float]:
    """The ridge problem of the pairs, and the penalty to use: the one given, or the best of several."""
    choices = None if penalty is None else _checked_penalties(penalty)
    problem = RidgeProblem(compute_moments(pairs, with_gram=True))
    if choices is None:
        choices = penalty_grid(problem.moments)
    if len(choices) == 1:
        return problem, float(choices[0])
    return problem, problem.choose_penalty(choices, pairs.unit_rows() if len(pairs) <= LEFT_OUT_PAIRS else None)


def _checked_penalties(penalty: float | Sequence[float]) -> np.ndarray:
    """(P,) finite numbers, above 0 if they are several."""
    choices = np.atleast_1d(np.asarray(penalty))
    fits = choices.ndim == 1 and choices.size > 0 and choices.dtype.kind in "fiu" and bool(np.isfinite(choices).all())
    if not fits or choices.min() < 0 or (choices.size > 1 and choices.min() == 0):
        raise UserError(f"penalty must be a number of at least 0, or several above 0 to choose from, got {penalty!r}")
    return choices


def _linear_weights(affine: Affine) -> dict[str, Tensor]:
    """Of an `nn.Linear`."""
    return {"weight": _tensor(affine.weight.T), "bias": _tensor(affine.bias)}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


KINDS: dict[str, Callable[..., Fitted]] = {
    "procrustes": _fit_procrustes,
    "ridge": _fit_ridge,
    "low_rank": _fit_low_rank,
    "mlp": _fit_mlp,
}
