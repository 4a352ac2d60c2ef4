"""What a training program adds to the common loop: its loss, its classifier, its use of the old model."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from core.data.open_dataset import ImageDataset
from core.engine.old_model import OldModel
from core.heads import PartialFC
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
    _old_model: OldModel | None = None

    @property
    def old_model(self) -> OldModel:
        """The old model, with its embeddings of `data`. A program with `uses_old_model = False` has none."""
        if self._old_model is None:
            raise RuntimeError("this program trains without an old model: set uses_old_model = True in its Method")
        return self._old_model

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
    """int64 (B,): row of each image in the data and in the old model's features."""
    epoch: int
    progress: float
    """Fraction of the whole training done, in [0, 1)."""
    old_embedding: Tensor
    """float32 (B, D) as stored, not normalised; (B, 0) in a program without an old model."""
    embedding: Tensor
    """The new model's output (B, D), with gradient."""


class Method(nn.Module, Generic[S]):
    """A paper's loss. Subclasses build their classifier and tables in `setup` and compute their terms in `loss`.

    Parameters and buffers of the module are moved to the device, optimised together with the backbone's, and kept in
    checkpoints; none of them goes into `model.pt`. The gradients of its parameters are averaged over the ranks, except
    those of `sharded_parameters`.
    """

    settings_type: type[Settings] = Settings
    """The class of `run.settings`: a method with settings of its own declares them in a subclass and names it here."""
    uses_old_model = True
    classifier: PartialFC
    """The classifier over the data's classes; the run folder keeps it whole as `classifier.pt`."""

    def needs(self, settings: S) -> tuple[str, ...]:
        """What the settings ask of the old model besides embeddings: of `classifier`, `num_classes`.

        Where it is missing, that is reported before the images are read.
        """
        return ()

    def setup(self, run: Run[S]) -> None:
        """Build what the loss needs, `classifier` among it. Called once on every rank."""
        raise NotImplementedError

    def start_epoch(self, epoch: int, backbone: nn.Module) -> None:
        """Called on every rank before the first step of an epoch, again if a run resumes there. Draws no numbers."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms of a micro-batch; their sum is minimised and each is logged under its name."""
        raise NotImplementedError

    def sharded_parameters(self) -> dict[nn.Parameter, int]:
        """The parameters cut by rows over the ranks, each with its rows on all ranks together.

        Their gradients must be those of the mean of the ranks' losses. Here those of every partial FC.
        """
        shards = [module for module in self.modules() if isinstance(module, PartialFC)]
        return {parameter: shard.num_classes for shard in shards for parameter in shard.parameters(recurse=False)}
