"""What a training program adds to the common loop: its loss, its heads, its use of the old features."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from core.data.open_dataset import ImageDataset
from core.embeddings.store import FeatureStore
from core.parallel.ranks import Ranks
from core.settings import Settings

__all__ = ["Batch", "Method", "Run"]

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Run(Generic[S]):
    """What a method may use when it is set up, before training starts."""

    settings: S
    data: ImageDataset
    ranks: Ranks
    old_features: FeatureStore | None
    """Old embeddings of `data`, row by row; None for a program that trains without an old model."""

    @property
    def device(self) -> torch.device:
        """Where the loss is computed."""
        return self.ranks.device


@dataclass
class Batch:
    """One rank's micro-batch of B images."""

    image: Tensor
    """Network input, float32 (B, 3, H, W)."""
    label: Tensor
    """int64 (B,)."""
    row: Tensor
    """int64 (B,): row of each image in the data and in the feature store."""
    epoch: int
    progress: float
    """Share of the whole training done, in [0, 1)."""
    old_embedding: Tensor | None = None
    """float32 (B, D) as stored, not normalised."""
    embedding: Tensor | None = None
    """The new model's output (B, D), with gradient."""


class Method(nn.Module, Generic[S]):
    """A paper's loss. Subclasses make their heads and tables in `setup` and compute their terms in `loss`.

    Parameters and buffers of the module are moved to the device, optimised together with the backbone's, and kept in
    checkpoints; none of them reaches `model.pt`. Gradients of its parameters are averaged over the ranks, except those
    of a `PartialFC`, which are exact shards already. A `PartialFC` that is called `head` is the classifier over the
    data's classes, which the run folder keeps whole as `classifier.pt`.
    """

    settings_type: type[Settings] = Settings
    """The class of `run.settings`: a method with settings of its own declares them in a subclass and names it here."""
    uses_old_model = True

    def setup(self, run: Run[S]) -> None:
        """Build what the loss needs. Called once on every rank."""
        raise NotImplementedError

    def start_epoch(self, epoch: int, backbone: nn.Module) -> None:
        """Called on every rank before the first step of an epoch; again if a run resumes there. Draws no numbers."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms of a micro-batch; their sum is minimised and each is logged under its name."""
        raise NotImplementedError
