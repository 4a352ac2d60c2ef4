"""Any model argument as an encoder: uint8 images in, embeddings out.

A model argument is a run folder (`model.pt` and `config.json`), a file with a plain state dict, or an `.onnx` file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.backbones import require_backbone
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.images.transforms import NORMALIZATIONS, Triple, normalize
from core.models.onnx_model import load_onnx_network, onnx_normalization
from core.models.run_config import read_run_config
from core.models.weights import build_with_weights, fingerprint, layout_of

__all__ = ["Encoder", "load_encoder"]


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
    """By channel (R, G, B), in units of 0 to 255."""
    fingerprint: str
    """SHA-256 (hex) of the backbone's state dict (`core.models.weights.fingerprint`), or of the `.onnx` file."""
    device: torch.device
    module: nn.Module
    """From normalised images (B, 3, H, W) to embeddings (B, D)."""
    old_model_fingerprint: str | None = None
    """Of the model whose gallery it was made compatible with, if any."""
    any_size: bool = False
    """True: images of any height and width may be given; `image_size` is that of the training."""

    @property
    def preprocessing(self) -> str:
        """What decides embeddings besides the weights: input size, mean and standard deviation."""
        return f"{self.image_size} pixels, mean {tuple(self.mean)}, std {tuple(self.std)}"

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
            return self.module(normalize(images, self.mean, self.std))


def load_encoder(
    path: str | Path,
    network: str | None = None,
    device: torch.device | str = "cpu",
    *,
    network_option: str = "-net",
) -> Encoder:
    """The model argument `path` as an `Encoder` on `device`.

    A run folder and an ONNX file know their network; if `network` is given too it must agree. A state dict needs it;
    everything else is read from the weights. Several input sizes can fit the same weights: `model.pt` of a run folder
    keeps the folder's, another file gets the usual one (`core.backbones`). Foreign ONNX files may name input and output
    as they like; without our metadata they get the face networks' normalisation, or none if they begin with it.
    `network_option` is where the caller's user names the network: the error that asks for it says so. `UserError` for
    anything missing, damaged or contradictory.
    """
    path, device = Path(path), torch.device(device)
    if network is not None:
        network = require_backbone(network)
    if not path.exists():
        raise UserError(f"model not found: {path} (a run folder, a .pt file of weights or an .onnx file)")
    if path.is_dir():
        return _load_run(path, network, device)
    if path.suffix == ".onnx":
        return _load_onnx(path, network, device)
    return _load_weights(path, network, device, network_option)


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
        any_size=getattr(module, "any_size", False),
    )


def _load_weights(path: Path, network: str | None, device: torch.device, network_option: str) -> Encoder:
    state_dict = read_state_dict(path)
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
        any_size=getattr(module, "any_size", False),
    )


def _load_onnx(path: Path, network: str | None, device: torch.device) -> Encoder:
    module, embedding_size = load_onnx_network(path, device)
    known = module.metadata.get("network")
    if known is not None and network not in (None, known):
        raise UserError(f"{path} holds network {known}, not {network}: leave the network out")
    content = path.read_bytes()
    mean, std = onnx_normalization(path, content, module.metadata)
    return Encoder(
        name=path.stem,
        network=known or network or "onnx",
        embedding_size=embedding_size,
        image_size=module.image_size,
        mean=mean,
        std=std,
        fingerprint=hashlib.sha256(content).hexdigest(),
        device=device,
        module=module,
        old_model_fingerprint=module.metadata.get("old_model_fingerprint"),
    )


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
