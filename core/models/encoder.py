"""Any model argument as an encoder: uint8 images in, embeddings out.

A model argument is a run folder (`model.pt` and `config.json`), a file with a plain state dict, an `.onnx` file, or the
run folder of a map (`map.pt` and `config.json`): its base model, beside it that of the map's side information if it
takes any, then the map.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones import require_backbone
from core.backbones.file_kinds import require_onnx
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.files import resolve
from core.images.preprocessing import RAW, Numbers, Preprocessing
from core.images.transforms import NORMALIZATIONS, Triple, normalize
from core.models.map_run import (
    NEW_TO_OLD,
    OLD_TO_NEW,
    BaseModel,
    is_map_run,
    joined_fingerprint,
    mapped_fingerprint,
    model_paths,
    read_map_run,
)
from core.models.mapped import JoinedNetworks, JoinedRows, MappedRows, Rows, UnitMap
from core.models.maps import Map, Space
from core.models.onnx_file import read_onnx_file
from core.models.onnx_model import OnnxNetwork, load_onnx_network
from core.models.onnx_preprocessing import Choice, choose_preprocessing, usual_image_size
from core.models.run_config import read_run_config
from core.models.weights import build_with_weights, fingerprint, layout_of

__all__ = ["Encoder", "load_encoder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen embedding model: called with images it returns embeddings."""

    name: str
    """Of the run folder or the file, for people."""
    network: str
    embedding_size: int
    image_size: int
    """Side of the images in pixels."""
    mean: Triple
    std: Triple
    """By channel of the network's input, in units of 0 to 255."""
    fingerprint: str
    """SHA-256 (hex) of what decides its embeddings: of the backbone's state dict (`core.models.weights.fingerprint`) or
    of the `.onnx` file and its external data; and of the preprocessing, where the caller changed it."""
    device: torch.device
    module: nn.Module
    """From normalised images (B, 3, H, W) to embeddings (B, D)."""
    old_model_fingerprint: str | None = None
    """Of the model whose gallery it was made compatible with, if any."""
    any_size: bool = False
    """True: images of any height and width may be given; `image_size` is that of the training."""
    channel_order: str = "RGB"
    """Of the network's input: RGB or BGR. Images are given as RGB to all encoders."""
    base: "Encoder | None" = None
    """Of a map's run folder: the model whose embeddings are mapped."""
    side: "Encoder | None" = None
    """Of the run folder of a map with side information: the model that gives it, from the same images."""
    map: Map | None = None
    """Of a map's run folder: what maps them. The encoder gives its plain output of a unit vector."""
    maps_gallery: bool = False
    """True: a map's run folder of the direction old_to_new, for a gallery that the base model has embedded."""

    @property
    def chain(self) -> "list[Encoder]":
        """The encoder and, of a map's run folder, its base model, the base's base and so on to a trained model."""
        return [self, *([] if self.base is None else self.base.chain)]

    @property
    def sources(self) -> "list[Encoder]":
        """Of a map's run folder: the models whose embeddings it takes, its base and the one of its side information."""
        return [model for model in (self.base, self.side) if model is not None]

    @property
    def models(self) -> "list[Encoder]":
        """The encoder and all models behind it: `sources`, theirs and so on to trained models."""
        return [self, *(model for source in self.sources for model in source.models)]

    @property
    def trained(self) -> "list[Encoder]":
        """Those of `models` that see the images."""
        return [model for model in self.models if model.base is None]

    @property
    def gallery_model(self) -> "Encoder":
        """The model that searched a gallery of these embeddings before an update.

        That is the model itself or, where a stored gallery is mapped, the model that embedded it.
        """
        return self.base.gallery_model if self.maps_gallery and self.base is not None else self

    def joined(self, *rows: Rows) -> Rows:
        """Of a map's run folder: the vectors that the map takes, from the embeddings by each of `sources` (N, D)."""
        return rows[0] if self.side is None else JoinedRows(*rows)

    def mapped(self, *rows: Rows, normalized: bool = False) -> MappedRows:
        """Of a map's run folder: what it gives for images, from the embeddings (N, D) of them by each of `sources`.

        float32 (N, `embedding_size`), as unit vectors if they are to be `normalized`.
        """
        return MappedRows(self.mapping, self.joined(*rows), self.embedding_size, self.device, normalized)

    @property
    def mapping(self) -> nn.Module:
        """Of a map's run folder: from the vectors that the map takes (B, D) to its own."""
        assert isinstance(self.module, nn.Sequential) and self.base is not None, "only a map's run folder has a base"
        return self.module[1]

    @property
    def preprocessing(self) -> str:
        """What decides embeddings besides the weights: input size, mean, standard deviation, and BGR if it is that.

        With side information of each trained model, the base's first.
        """
        if self.base is not None:
            return "; ".join(model.preprocessing for model in self.trained)
        order = "" if self.channel_order == "RGB" else f", {self.channel_order}"
        return f"{self.image_size} pixels, mean {tuple(self.mean)}, std {tuple(self.std)}{order}"

    @torch.no_grad()
    def __call__(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) RGB to float32 (B, D) on `device`, not normalised; H = W = `image_size` unless `any_size`.

        In float32 even where the caller has autocast on. `UserError` for images of another size.
        """
        images = torch.as_tensor(images).to(self.device, non_blocking=True)
        sides = images.shape[1:3] if self.any_size else (self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.shape[1:] != (*sides, 3):
            taken = "height, width" if self.any_size else f"{self.image_size}, {self.image_size}"
            raise UserError(
                f"model {self.name} takes uint8 images (B, {taken}, 3), got {images.dtype} {tuple(images.shape)}: "
                "give images of its size"
            )
        with torch.autocast(self.device.type, enabled=False):
            return self.module(normalize(images, self.mean, self.std, self.channel_order))


def load_encoder(
    path: str | Path,
    network: str | None = None,
    device: torch.device | str = "cpu",
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    channel_order: str | None = None,
    network_option: str = "-net",
) -> Encoder:
    """The model argument `path` as an `Encoder` on `device`.

    A run folder and an ONNX file know their network; if `network` is given too it must agree. A map's run folder knows
    its base model and what that takes: nothing else may be given. A state dict needs its network;
    everything else is read from the weights. Several input sizes can fit the same weights: `model.pt` of a run folder
    keeps the folder's, another file gets the usual one (`core.backbones`). Foreign ONNX files may name input and output
    as they like. What they are fed is read from their metadata or their graph (`core.models.onnx_preprocessing`); one
    log line says what was found, a warning if it is a guess.

    `mean`, `std` and `channel_order` ("RGB", "BGR") say what the model takes where that is not known, or known wrongly.
    Mean and std are given together: one number or three by channel of the input, in units of 0 to 255, or a name of
    `NORMALIZATIONS`. The fingerprint of a model that is fed otherwise than by itself is another one. `network_option`
    is where the caller's user names the network: the error that asks for it says so. `UserError` for
    anything missing, damaged or contradictory.
    """
    path, device = Path(path), torch.device(device)
    if network is not None:
        network = require_backbone(network)
    if not path.exists():
        raise UserError(f"model not found: {path} (a run folder, a .pt file of weights or an .onnx file)")
    if path.suffix.lower() == ".onnx" and path.is_file():
        encoder, choice = _load_onnx(path, network, device)
    else:
        choice = None
        if is_map_run(path):
            if (network, mean, std, channel_order) != (None, None, None, None):
                raise UserError(
                    f"{path} is the run folder of a map, which knows its base model, its network and what that is fed: "
                    "leave network, mean, std and channel order out"
                )
            return _load_map_run(path, device)
        if path.is_dir():
            encoder = _load_run(path, network, device)
        else:
            encoder = _load_weights(path, network, device, network_option)
    return _fed_as_told(encoder, choice, mean, std, channel_order)


def _fed_as_told(
    encoder: Encoder, choice: Choice | None, mean: Numbers | None, std: Numbers | None, channel_order: str | None
) -> Encoder:
    """The encoder with the preprocessing that the caller names, if any, and a log line that says what it is.

    `choice` is how an ONNX file's own was found; other models know theirs.
    """
    own = Preprocessing(encoder.mean, encoder.std, encoder.channel_order)
    used = own.replaced(mean, std, channel_order)
    pixels_alone = isinstance(encoder.module, OnnxNetwork) and encoder.module.takes_pixels
    if pixels_alone and (used.mean, used.std) != (RAW.mean, RAW.std):
        raise UserError(f"model {encoder.name} takes pixels of type uint8 as they are: leave out mean and std")
    if used != own:
        encoder = replace(encoder, mean=used.mean, std=used.std, channel_order=used.channel_order)
        digest = hashlib.sha256(f"{encoder.fingerprint} {encoder.preprocessing}".encode())
        encoder = replace(encoder, fingerprint=digest.hexdigest())
    if choice is not None or used != own:
        _log_what_is_fed(encoder, choice if mean is None else None, channel_order is not None)
    return encoder


def _log_what_is_fed(encoder: Encoder, choice: Choice | None, order_is_told: bool) -> None:
    """One line: the input of a model, and how it was decided; without a `choice` the user did."""
    reason = "as told" if choice is None else choice.reason + ("; the channel order as told" if order_is_told else "")
    size = encoder.image_size
    line = f"model {encoder.name} is fed {size}x{size} {encoder.channel_order}, mean {encoder.mean}, std {encoder.std}"
    if choice is None or choice.certain:
        logger.info("%s (%s)", line, reason)
    else:
        logger.warning(
            "%s (%s): if it takes others, name them with --mean, --std and --channel-order, of -m_old with --mean-old "
            "and so on, in a config with old_mean and so on", line, reason,
        )  # fmt: skip


def _load_run(folder: Path, network: str | None, device: torch.device) -> Encoder:
    config = read_run_config(folder)
    if network not in (None, config["network"]):
        raise UserError(f"run {folder} holds network {config['network']}, not {network}: leave the network out")
    weights = folder / "model.pt"
    options = {**(config.get("network_options") or {}), "image_size": config["image_size"]}
    module = build_with_weights(read_state_dict(weights), config["network"], config["embedding_size"], options, weights)
    mean, std = NORMALIZATIONS[config["normalization"]]
    return Encoder(
        name=folder.resolve().name,
        network=config["network"],
        embedding_size=config["embedding_size"],
        image_size=config["image_size"],
        mean=mean,
        std=std,
        fingerprint=fingerprint(module.state_dict()),
        device=device,
        module=_frozen(module, device),
        old_model_fingerprint=config.get("old_model_fingerprint"),
        any_size=bool(getattr(module, "any_size", False)),
    )


def _load_map_run(folder: Path, device: torch.device) -> Encoder:
    run = read_map_run(folder)
    model_paths(folder)  # which do not lead in a circle
    base = _load_source(folder, "base", run.base, device)
    side = None if run.side is None else _load_source(folder, "side", run.side, device)
    source = base if side is None else _joined(folder, base, side)
    run.map.require_source(Space(source.embedding_size, source.name, source.fingerprint))
    return replace(
        source,
        name=f"{source.name}+{run.map.kind}",
        network=f"{source.network}+{run.map.kind}",
        embedding_size=run.map.target.size,
        fingerprint=mapped_fingerprint(source.fingerprint, run.map.fingerprint),
        module=_frozen(nn.Sequential(source.module, UnitMap(run.map)), device),
        old_model_fingerprint=run.map.target.fingerprint if run.direction == NEW_TO_OLD else None,
        base=base,
        side=side,
        map=run.map,
        maps_gallery=run.direction == OLD_TO_NEW,
    )


def _load_source(folder: Path, entry: str, about: BaseModel, device: torch.device) -> Encoder:
    """The model that the `entry` base or side of a map's config describes."""
    path, place = resolve(about.path), f"{entry} of {folder / 'config.json'}"
    if not path.exists():
        raise UserError(f"the {entry} model of the map {folder} is not at {path}: put it there, or correct {place}")
    model = load_encoder(
        path, about.network, device, mean=about.mean, std=about.std, channel_order=about.channel_order,
        network_option=place,
    )  # fmt: skip
    if model.fingerprint != about.fingerprint:
        raise UserError(
            f"the model at {path} (fingerprint {model.fingerprint[:12]}) is not the {entry} model of the map {folder} "
            f"(fingerprint {about.fingerprint[:12]}): put that model there, correct {place}, or fit the map again"
        )
    return model


def _joined(folder: Path, base: Encoder, side: Encoder) -> Encoder:
    """What a map with side information takes: the base's embeddings of images, each followed by the side model's."""
    if base.image_size != side.image_size:
        raise UserError(
            f"the base model of the map {folder} takes images of {base.image_size} pixels, its side model "
            f"{side.image_size}: fit the map again with a side model that takes those of the base"
        )
    fed = [Preprocessing(model.mean, model.std, model.channel_order) for model in (base, side)]
    return replace(
        base,
        name=f"{base.name},{side.name}",
        network=f"{base.network},{side.network}",
        embedding_size=base.embedding_size + side.embedding_size,
        fingerprint=joined_fingerprint(base.fingerprint, side.fingerprint),
        module=JoinedNetworks(base.module, side.module, *fed),
        any_size=base.any_size and side.any_size,
    )


def _load_weights(path: Path, network: str | None, device: torch.device, network_option: str) -> Encoder:
    if path.name == "map.pt" and is_map_run(path.parent):
        raise UserError(f"{path} holds a map alone, without the model whose embeddings it takes: name {path.parent}")
    state_dict = read_state_dict(path, network)
    if network is None:
        raise UserError(f"{path} is a bare state dict, which does not know its network: name it with {network_option}")
    if path.name == "model.pt" and (path.parent / "config.json").is_file():
        return _load_run(path.parent, network, device)
    layout = layout_of(state_dict, network, path)
    options = {**layout.options, "image_size": layout.image_size}
    module = build_with_weights(state_dict, network, layout.embedding_size, options, path)
    mean, std = NORMALIZATIONS[layout.normalization]
    return Encoder(
        name=path.stem,
        network=network,
        embedding_size=layout.embedding_size,
        image_size=layout.image_size,
        mean=mean,
        std=std,
        fingerprint=fingerprint(module.state_dict()),
        device=device,
        module=_frozen(module, device),
        any_size=bool(getattr(module, "any_size", False)),
    )


def _load_onnx(path: Path, network: str | None, device: torch.device) -> tuple[Encoder, Choice]:
    require_onnx(path)
    model, fingerprint, disk = read_onnx_file(path)
    module, embedding_size = load_onnx_network(path, device, usual_image_size(model), disk)
    known = module.metadata.get("network")
    if known is not None and network not in (None, known):
        raise UserError(f"{path} holds network {known}, not {network}: leave the network out")
    if module.size_is_open:
        logger.warning(
            "%s leaves height and width open: it is fed images of %d pixels; export it with fixed ones to have others",
            path, module.image_size,
        )  # fmt: skip
    choice = choose_preprocessing(path, model, module)
    encoder = Encoder(
        name=path.stem,
        network=known or network or "onnx",
        embedding_size=embedding_size,
        image_size=module.image_size,
        mean=choice.preprocessing.mean,
        std=choice.preprocessing.std,
        fingerprint=fingerprint,
        device=device,
        module=module,
        old_model_fingerprint=module.metadata.get("old_model_fingerprint"),
        channel_order=choice.preprocessing.channel_order,
    )
    return encoder, choice


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
