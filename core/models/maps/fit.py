"""Fitting a map of any kind to pairs."""

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.models.maps.linear import Affine, RidgeProblem, penalty_grid, procrustes
from core.models.maps.map import Map
from core.models.maps.modules import build_module
from core.models.maps.moments import compute_moments
from core.models.maps.vectors import Pairs, Space, Vectors, open_pairs

__all__ = ["KINDS", "fit_map"]

logger = logging.getLogger(__name__)
MIN_PAIRS = 10
"""Fewer say nothing about a space."""
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
    - "ridge": affine; `penalty`: a number, several to choose from by generalised cross-validation, or None for a grid.
    - "low_rank": a ridge of `rank` (64, or the smaller size), with `penalty` as above.

    `UserError` for an unknown kind or option, arrays that are no pairs, fewer than ten pairs, a row without a direction.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind of map {kind!r}: choose one of {', '.join(KINDS)}")
    fit = KINDS[kind]
    known = [
        name for name, parameter in inspect.signature(fit).parameters.items() if parameter.kind.name == "KEYWORD_ONLY"
    ]
    for name in options:
        if name not in known:
            raise UserError(f"a {kind} map has no option {name!r}: its options are {', '.join(known)}")
    pairs = open_pairs(source, target, spaces)
    if len(pairs) < MIN_PAIRS:
        raise UserError(f"{len(pairs)} pairs are too few to fit a map: at least {MIN_PAIRS} are needed")
    fitted = fit(pairs, labels, **options)
    module = build_module(kind, pairs.source_space.size, pairs.target_space.size, fitted.options)
    module.load_state_dict(fitted.state_dict, assign=True)
    module.eval().requires_grad_(False)
    return Map(kind, pairs.source_space, pairs.target_space, module, len(pairs), fitted.options, fitted.penalty)


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
    if not isinstance(rank, int) or not 1 <= rank <= smaller:
        raise UserError(f"rank must be a whole number from 1 to {smaller}, the smaller embedding size, got {rank!r}")
    problem, used = _ridge(pairs, penalty)
    inner, outer = problem.solve_low_rank(used, rank)
    weights = {"0.weight": _tensor(inner.T)} | {f"1.{name}": tensor for name, tensor in _linear_weights(outer).items()}
    return Fitted(weights, {"rank": inner.shape[1]}, used)


def _ridge(pairs: Pairs, penalty: float | Sequence[float] | None) -> tuple[RidgeProblem, float]:
    """The ridge problem of the pairs, and the penalty to use: the one given, or the best of several."""
    problem = RidgeProblem(compute_moments(pairs, with_gram=True))
    if penalty is None:
        return problem, problem.choose_penalty(penalty_grid(problem.moments))
    choices = np.atleast_1d(np.asarray(penalty, dtype=np.float64))
    allowed = np.isfinite(choices) & ((choices > 0) if len(choices) > 1 else (choices >= 0))
    if choices.ndim != 1 or len(choices) == 0 or not allowed.all():
        raise UserError(f"penalty must be a number of at least 0, or several above 0 to choose from, got {penalty!r}")
    return problem, float(choices[0]) if len(choices) == 1 else problem.choose_penalty(choices)


def _linear_weights(affine: Affine) -> dict[str, Tensor]:
    """Of an `nn.Linear`."""
    return {"weight": _tensor(affine.weight.T), "bias": _tensor(affine.bias)}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


KINDS: dict[str, Callable[..., Fitted]] = {
    "procrustes": _fit_procrustes,
    "ridge": _fit_ridge,
    "low_rank": _fit_low_rank,
}
