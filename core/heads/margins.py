"""Margins of the softmax classifiers: the logit of a sample's own class, and the scale of all logits.

A margin is called with cosines `(B, C)` and labels `(B,)` (column of each row's own class; negative = none of these
columns) and returns logits `(B, C)` in their dtype: `s * cos` everywhere, but `target_logits(cos)` at the labels.
Inputs are never modified; the result is the only `(B, C)` temporary. Gradients are the true derivatives and finite
everywhere in [-1, 1].

- ArcFace: Deng et al., arXiv 1801.07698, equation 3, `s * cos(theta + m)`.
- CosFace: Wang et al., arXiv 1801.09414, equation 4, `s * (cos(theta) - m)`.

Departures from InsightFace's arcface_torch: its ArcFace gives the target's cosine a derivative of s, leaving out the
factor `sin(theta + m) / sin(theta)`; here the derivative is that of the formula.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

__all__ = ["ArcFace", "CosFace", "Margin", "Softmax"]

MIN_SINE_SQUARED = 1e-12
"""Lower bound of the squared sine, where its derivative is 0. In float32 only cosines of at least 1 are below it."""


@dataclass(frozen=True)
class Margin:
    """What the margins share; a subclass has its `normalized` and `target_logits`."""

    s: float = 1.0
    """Scale of the logits."""
    normalized: ClassVar[bool]
    """True: the margin works on cosines (embeddings and class weights of length 1); False: on plain inner products."""

    def target_logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """Logits `(n,)` of the samples whose cosines with their own class are `(n,)`; differentiable."""
        raise NotImplementedError

    def __call__(self, cosines: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits `(B, C)` of cosines `(B, C)` and labels `(B,)`, which may be negative for none of these columns."""
        logits = self.s * cosines
        if cosines.shape[1] == 0:
            return logits
        columns = labels.clamp(min=0).unsqueeze(1)
        own = cosines.gather(1, columns)
        own = torch.where(labels.unsqueeze(1) >= 0, self.target_logits(own), self.s * own)
        return logits.scatter_(1, columns, own)


@dataclass(frozen=True)
class ArcFace(Margin):
    """Additive angular margin of `m` radians: `s * cos(theta + m)`.

    For theta + m > pi the cosine increases again; as in arcface_torch it is used as it is, without "easy margin" or a
    linear continuation.
    """

    s: float = 64.0
    m: float = 0.5
    normalized: ClassVar[bool] = True

    def target_logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """`s * (cos(theta) cos(m) - sin(theta) sin(m))` for cosines of any shape."""
        sines = ((1.0 - cosines) * (1.0 + cosines)).clamp(min=MIN_SINE_SQUARED).sqrt()
        return self.s * (math.cos(self.m) * cosines - math.sin(self.m) * sines)


@dataclass(frozen=True)
class CosFace(Margin):
    """Additive cosine margin: `s * (cos(theta) - m)`."""

    s: float = 64.0
    m: float = 0.4
    normalized: ClassVar[bool] = True

    def target_logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """`s * (cosines - m)` for cosines of any shape."""
        return self.s * (cosines - self.m)


@dataclass(frozen=True)
class Softmax(Margin):
    """No margin, no scale, no normalisation: the logits are the inner products as they are."""

    normalized: ClassVar[bool] = False

    def target_logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """The inner products themselves."""
        return cosines
