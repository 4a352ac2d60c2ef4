"""Any model argument as an encoder: uint8 images in, embeddings out.

A model argument is a run folder (`model.pt` and `config.json`), a file with a plain state dict, or an `.onnx` file.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from easydict import EasyDict
from torch import Tensor, nn

from core.backbones import require_backbone
from core.backbones.state_dicts import read_state_dict
from core.errors import UserError
from core.files import require_file
from core.images.transforms import NORMALIZATIONS, normalize
from core.models.weights import build_with_weights, fingerprint, layout_of

__all__ = ["Encoder", "load_encoder", "onnx_session", "read_run_config", "run_session"]

logger = logging.getLogger(__name__)

Triple = tuple[float, float, float]
DEFAULT_IMAGE_SIZE = 112
"""Input size of an ONNX model that leaves height and width open: that of the face networks."""
RUN_TYPES = {
    "network": str,
    "embedding_size": int,
    "image_size": int,
    "normalization": str,
    "network_options": dict | None,
    "num_classes": int,
}
"""Of what this project reads of a run's `config.json`."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen embedding model: called with images it gives embeddings. Either `module` or `session` is set."""

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
    """sha256 (hex) of the backbone's state dict (`core.models.weights.fingerprint`), or of the `.onnx` file."""
    device: torch.device
    module: nn.Module | None = None
    session: onnxruntime.InferenceSession | None = None
    old_model_fingerprint: str | None = None
    """Of the model whose gallery it was made compatible with, if any."""
    any_size: bool = False
    """True: images of any height and width may be given; `image_size` is that of the training."""

    @property
    def preprocessing(self) -> str:
        """What the weights alone do not say of how images become embeddings: input size, mean and deviation."""
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
        inputs = normalize(images, self.mean, self.std)
        if self.session is not None:
            return torch.from_numpy(run_session(self.session, inputs.cpu().contiguous().numpy())).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            return self.module(inputs)


def load_encoder(path: str | Path, network: str | None = None, device: torch.device | str = "cpu") -> Encoder:
    """The model argument `path` as an `Encoder` on `device`.

    A run folder and an ONNX file know their network; if `network` is given too it must agree. A state dict needs it;
    everything else is read from the weights. Several input sizes can fit the same weights: `model.pt` of a run folder
    keeps the folder's, another file gets the usual one (`core.backbones`). Other makers' ONNX files may name input and
    output as they like; without our metadata they get the face networks' normalisation, or none if they begin with it.
    `UserError` for anything missing, damaged or contradictory.
    """
    path, device = Path(path), torch.device(device)
    if network is not None:
        require_backbone(network)
    if not path.exists():
        raise UserError(f"model not found: {path} (a run folder, a .pt file of weights or an .onnx file)")
    if path.is_dir():
        return _load_run(path, network, device)
    if path.suffix == ".onnx":
        return _load_onnx(path, network, device)
    return _load_weights(path, network, device)


def _load_run(folder: Path, network: str | None, device: torch.device) -> Encoder:
    config = read_run_config(folder)
    if network not in (None, config["network"]):
        raise UserError(f"run {folder} holds network {config['network']}, not {network}: leave the network out")
    weights = folder / "model.pt"
    state_dict = read_state_dict(weights)
    options = {**(config.get("network_options") or {}), "image_size": config["image_size"]}
    module = build_with_weights(state_dict, config["network"], config["embedding_size"], options, weights)
    mean, std = _normalization(config, folder)
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


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    return module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def read_run_config(folder: Path) -> EasyDict:
    """`config.json` of a run folder. `UserError` if it is missing, damaged, or does not tell the network.

    What it has of `RUN_TYPES` is of these types.
    """
    file = require_file(folder / "config.json", "config of the run folder")
    try:
        config = EasyDict(json.loads(file.read_text(encoding="utf-8")))
        missing = sorted({"network", "embedding_size", "image_size"} - set(config))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is no JSON object ({error}): the run folder is damaged") from error
    if missing:
        raise UserError(f"{file} has no {missing[0]!r}: it is not the config of a run")
    for key, kind in RUN_TYPES.items():
        if key in config and not isinstance(config[key], kind):
            found = type(config[key]).__name__
            raise UserError(f"{file}: {key} is {config[key]!r}, of type {found}: the run folder is damaged")
    return config


def _normalization(config: dict, folder: Path) -> tuple[Triple, Triple]:
    name = config.get("normalization", "face")
    if name not in NORMALIZATIONS:
        raise UserError(f"{folder}/config.json: unknown normalization {name!r}, known are {', '.join(NORMALIZATIONS)}")
    return NORMALIZATIONS[name]


def _load_weights(path: Path, network: str | None, device: torch.device) -> Encoder:
    state_dict = read_state_dict(path)
    if network is None:
        raise UserError(f"{path} is a bare state dict, which does not know its network: name it with -net")
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


def onnx_session(model: bytes | Path, device: torch.device) -> onnxruntime.InferenceSession:
    """An inference session on `device`, as many threads as torch uses. Any failure of the runtime is passed on."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            logger.warning("this ONNX Runtime has no CUDA: the ONNX model runs on the CPU (install onnxruntime-gpu)")
    return onnxruntime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=providers)


def run_session(session: onnxruntime.InferenceSession, inputs: np.ndarray) -> np.ndarray:
    """float32 (B, 3, H, W) to float32 (B, D); a model with a fixed batch runs in parts of that size."""
    (model_input,), output = session.get_inputs(), _output(session)
    fixed = model_input.shape[0]
    if not isinstance(fixed, int) or fixed == len(inputs):
        return session.run([output.name], {model_input.name: inputs})[0]
    padded = np.concatenate((inputs, np.zeros((-len(inputs) % fixed, *inputs.shape[1:]), inputs.dtype)))
    parts = [session.run([output.name], {model_input.name: part})[0] for part in np.split(padded, len(padded) // fixed)]
    return np.concatenate(parts)[: len(inputs)]


def _output(session: onnxruntime.InferenceSession):
    """The output called `embedding`, else the first."""
    outputs = session.get_outputs()
    return next((output for output in outputs if output.name == "embedding"), outputs[0])


def _load_onnx(path: Path, network: str | None, device: torch.device) -> Encoder:
    content = path.read_bytes()
    try:
        session = onnx_session(path, device)
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot load {path}: {error}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    known = metadata.get("network")
    if known is not None and network not in (None, known):
        raise UserError(f"{path} holds network {known}, not {network}: leave the network out")
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4 or shape[1] != 3:
        described = ", ".join(f"{item.name} {item.type} {item.shape}" for item in inputs)
        raise UserError(
            f"{path} is no image encoder: expected one float input (batch, 3, height, width), got {described}"
        )
    image_size = shape[2] if isinstance(shape[2], int) else DEFAULT_IMAGE_SIZE
    if shape[3] not in (shape[2], image_size) and isinstance(shape[3], int):
        raise UserError(f"{path} takes images of {shape[2]}x{shape[3]}: only square ones are known here")
    try:
        probe = run_session(session, np.zeros((1, 3, image_size, image_size), np.float32))
    except Exception as error:
        raise UserError(
            f"ONNX Runtime cannot run {path} on images of {image_size}x{image_size} (if its images have another size, "
            f"export it with fixed height and width): {error}"
        ) from error
    if probe.ndim != 2:
        raise UserError(f"{path} is no image encoder: expected an output (batch, size), got {probe.shape}")
    mean, std = _onnx_normalization(metadata, content, path)
    return Encoder(
        name=path.stem,
        network=known or network or "onnx",
        embedding_size=probe.shape[1],
        image_size=image_size,
        mean=mean,
        std=std,
        fingerprint=hashlib.sha256(content).hexdigest(),
        device=device,
        session=session,
        old_model_fingerprint=metadata.get("old_model_fingerprint"),
    )


def _onnx_normalization(metadata: dict[str, str], content: bytes, path: Path) -> tuple[Triple, Triple]:
    """From the metadata, else the faces'; none where the graph begins with Sub and Mul (as MXNet's exporter has it)."""
    if "mean" in metadata and "std" in metadata:
        try:
            mean, std = (tuple(float(value) for value in json.loads(metadata[key])) for key in ("mean", "std"))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: the metadata mean and std must be lists of three numbers") from error
        if len(mean) == len(std) == 3 and min(std) > 0:
            return mean, std
        raise UserError(f"{path}: the metadata mean and std must be lists of three numbers, std positive")
    first_types = [node.op_type for node in onnx.load_from_string(content).graph.node[:2]]
    if first_types == ["Sub", "Mul"]:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return NORMALIZATIONS["face"]
