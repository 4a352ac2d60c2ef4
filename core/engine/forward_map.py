"""What FCT and FastFill share: a network from old embeddings, and side information, to the new model's space."""

from typing import ClassVar, TypeVar

import torch

from core.engine.map_method import FittedMap, Fitting
from core.engine.map_training import Spread, TrainedMap, finished_map
from core.models.map_run import OLD_TO_NEW
from core.models.maps.forward import ForwardNetwork
from core.models.maps.modules import FORWARD_NETWORKS
from core.settings.map_settings import ForwardMapSettings

__all__ = ["ForwardMap"]

F = TypeVar("F", bound=ForwardMapSettings)


class ForwardMap(TrainedMap[F]):
    """Holds the network. In the second half of the epochs its batch statistics are those of the first one, frozen."""

    directions = (OLD_TO_NEW,)
    settings_type = ForwardMapSettings
    kind: ClassVar[str]
    """Of the map: fct or fastfill."""
    network: ForwardNetwork

    def setup(self, run: Fitting[F]) -> None:
        """Build the network."""
        self.options = {"hidden": run.settings.hidden, "side_size": run.side_size}
        self.num_epoch = run.settings.num_epoch
        self.network = FORWARD_NETWORKS[self.kind](run.source_size, run.new.size, **self.options)

    def start_epoch(self, epoch: int) -> None:
        """Freeze the batch statistics after half of the epochs."""
        self.network.train(epoch < self.num_epoch / 2)

    def half_precision(self, run: Fitting[F]) -> bool:
        """As `precision` says."""
        if run.settings.precision == "auto":
            return run.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return run.settings.precision == "bf16"

    def maps(self, run: Fitting[F]) -> dict[str, FittedMap]:
        """The one map, for stored galleries."""
        rows = run.spread_rows()
        source = Spread(run.unit_sources(rows), run.source_space)
        target = Spread(run.new.unit_features(rows), run.new.space)
        fitted = finished_map(run, self.kind, self.network, self.options, source, target)
        return {"": FittedMap(fitted, run.old, OLD_TO_NEW)}
