"""Every setting that the programs share that fit a map between the spaces of two models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from core.settings.keys import key, key_of
from core.settings.settings import Settings, run_folder

__all__ = ["ForwardMapSettings", "MapSettings", "MapTrainingSettings", "ModelArgument"]

Numbers: TypeAlias = str | float | tuple[float, ...] | None


@dataclass(frozen=True)
class ModelArgument:
    """What the settings say of one of the models."""

    which: str
    """old, new or side: how its keys begin."""
    path: str | None
    network: str | None
    mean: Numbers
    std: Numbers
    channel_order: str | None
    features: str | None


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """The settings of a program that fits a map. A method adds its own in a subclass."""

    rec: str | None = key_of(Settings, "rec", heading="Images, embedded by both models: the pairs")
    image_root: str | None = key_of(Settings, "image_root")
    bad_images: Literal["error", "skip"] = key_of(Settings, "bad_images")
    num_workers: int = key_of(Settings, "num_workers")
    batch_size: int = key(128, "images that a rank embeds at a time", minimum=1)

    old_model: str | None = key_of(Settings, "old_model", heading="The old model, that made the gallery")
    old_network: str | None = key_of(Settings, "old_network")
    old_mean: Numbers = key_of(Settings, "old_mean")
    old_std: Numbers = key_of(Settings, "old_std")
    old_channel_order: Literal["RGB", "BGR"] | None = key_of(Settings, "old_channel_order")
    old_features: str | None = key(
        None, "folder of its embeddings of the images; None: made under features/", path="output"
    )

    new_model: str | None = key(None, "run folder, .pt or .onnx", heading="The new model", path="input")
    new_network: str | None = key(None, "its network, when new_model is a bare .pt")
    new_mean: Numbers = key_of(Settings, "old_mean")
    new_std: Numbers = key_of(Settings, "old_std")
    new_channel_order: Literal["RGB", "BGR"] | None = key_of(Settings, "old_channel_order")
    new_features: str | None = key_of(Settings, "features")

    direction: Literal["old_to_new", "new_to_old"] | None = key(
        None,
        "old_to_new: for stored galleries; new_to_old: for queries; None: what the method is for",
        heading="The map",
    )

    device: Literal["auto", "cuda", "cpu"] = key_of(Settings, "device", heading="Execution")
    seed: int = key(666, "of first weights and order of pairs, where a map is trained", minimum=0, maximum=2**32 - 1)

    output: str | None = key_of(Settings, "output", heading="Run folder")

    @property
    def run_folder(self) -> Path:
        """The path of `output`, which a loaded config always has."""
        return run_folder(self.output)

    @property
    def models(self) -> list[ModelArgument]:
        """The old model and the new one."""
        old_input = self.old_network, self.old_mean, self.old_std, self.old_channel_order
        new_input = self.new_network, self.new_mean, self.new_std, self.new_channel_order
        return [
            ModelArgument("old", self.old_model, *old_input, self.old_features),
            ModelArgument("new", self.new_model, *new_input, self.new_features),
        ]


@dataclass(frozen=True, kw_only=True)
class MapTrainingSettings(MapSettings):
    """Of a map that is trained by gradient descent, with Adam."""

    pairs_per_step: int = key(1024, "pairs in a step", minimum=2, heading="Training of the map, by Adam")
    num_epoch: int = key(80, "epochs of the whole training", minimum=1)
    warmup_epoch: int = key(5, "epochs of linear warm-up; then lr falls as a cosine", minimum=0)
    lr: float = key(5e-4, "for the pairs of a step as they are", above=0)
    weight_decay: float = key(0.0, "of all parameters, added to the gradient", minimum=0)
    frequent: int = key_of(Settings, "frequent")
    resume: bool = key(
        True, "go on from checkpoint.pt in the run folder if there is one; False: start over and replace it"
    )


@dataclass(frozen=True, kw_only=True)
class ForwardMapSettings(MapTrainingSettings):
    """Of FCT and FastFill, as released."""

    hidden: int = key(2048, "units of the two blocks behind the branches", minimum=1, heading="The forward network")
    precision: Literal["auto", "bf16", "fp32"] = key(
        "auto", "of the network's matrix products; auto: bf16 on CUDA where it has that, else fp32"
    )
    weight_decay: float = key(2.0**-15, "of all parameters, added to the gradient", minimum=0)
    side_model: str | None = key(
        None, "gives side information on the images: run folder, .pt or .onnx; None: there is none", path="input"
    )
    side_network: str | None = key(None, "its network, when side_model is a bare .pt")
    side_mean: Numbers = key_of(Settings, "old_mean")
    side_std: Numbers = key_of(Settings, "old_std")
    side_channel_order: Literal["RGB", "BGR"] | None = key_of(Settings, "old_channel_order")
    side_features: str | None = key_of(MapSettings, "old_features")

    @property
    def models(self) -> list[ModelArgument]:
        """The old model, the new one, and the one that gives side information, if there is any."""
        if self.side_model is None:
            return super().models
        told = self.side_network, self.side_mean, self.side_std, self.side_channel_order
        return [*super().models, ModelArgument("side", self.side_model, *told, self.side_features)]
