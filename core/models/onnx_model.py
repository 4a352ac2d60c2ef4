"""ONNX files, this project's own and others', as networks that run on ONNX Runtime."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.images.transforms import NORMALIZATIONS, Triple

__all__ = ["OnnxNetwork", "load_onnx_network", "onnx_normalization"]

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 112
"""Input size of a model that leaves height and width open: that of the face networks."""


class OnnxNetwork(nn.Module):
    """Normalised images (B, 3, H, W) to float32 embeddings (B, D), by ONNX Runtime with as many threads as torch uses.

    The output is the one called `embedding`, else the first. A model with a fixed batch runs in parts of that size.
    Failures of the runtime are passed on. Attributes: `inputs` (as ONNX Runtime describes them) and `metadata`.
    """

    def __init__(self, path: str | Path, device: torch.device):
        super().__init__()
        self._session = _open_session(path, device)
        self.inputs = self._session.get_inputs()
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        outputs = [output.name for output in self._session.get_outputs()]
        self._output = "embedding" if "embedding" in outputs else outputs[0]

    @property
    def image_size(self) -> int:
        """Height of the images in pixels, 112 if the model leaves it open."""
        height = self.inputs[0].shape[2]
        return height if isinstance(height, int) else DEFAULT_IMAGE_SIZE

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D), on the device of `images`."""
        pixels = images.cpu().contiguous().numpy()
        fixed = self.inputs[0].shape[0]
        if not isinstance(fixed, int) or fixed == len(pixels):
            return torch.from_numpy(self._run(pixels)).to(images.device)
        padded = np.concatenate((pixels, np.zeros((-len(pixels) % fixed, *pixels.shape[1:]), pixels.dtype)))
        parts = [self._run(part) for part in np.split(padded, len(padded) // fixed)]
        return torch.from_numpy(np.concatenate(parts)[: len(pixels)]).to(images.device)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        (embeddings,) = self._session.run([self._output], {self.inputs[0].name: pixels})
        return np.asarray(embeddings, np.float32)


def load_onnx_network(path: Path, device: torch.device) -> tuple[OnnxNetwork, int]:
    """The network in an `.onnx` file and its embedding size.

    `UserError` if ONNX Runtime cannot load it or run it on an image, or if it is not an encoder of square images.
    """
    try:
        network = OnnxNetwork(path, device)
    except Exception as error:  # ONNX Runtime has many exceptions without a common base
        raise UserError(f"ONNX Runtime cannot load {path}: {error}") from error
    shape = network.inputs[0].shape
    if len(network.inputs) != 1 or network.inputs[0].type != "tensor(float)" or len(shape) != 4 or shape[1] != 3:
        described = ", ".join(f"{item.name} {item.type} {item.shape}" for item in network.inputs)
        raise UserError(
            f"{path} is not an image encoder: expected one float input (batch, 3, height, width), got {described}"
        )
    size = network.image_size
    if isinstance(shape[3], int) and shape[3] not in (shape[2], size):
        raise UserError(f"{path} takes images of {shape[2]}x{shape[3]}: only square images are supported")
    try:
        embedding = network(torch.zeros(1, 3, size, size))
    except Exception as error:
        raise UserError(
            f"ONNX Runtime cannot run {path} on images of {size}x{size} (if its images have another size, export it "
            f"with fixed height and width): {error}"
        ) from error
    if embedding.ndim != 2:
        raise UserError(
            f"{path} is not an image encoder: expected an output (batch, size), got {tuple(embedding.shape)}"
        )
    return network, embedding.shape[1]


def onnx_normalization(path: Path, content: bytes, metadata: dict[str, str]) -> tuple[Triple, Triple]:
    """Mean and standard deviation of the images that the model in `content` takes.

    From the metadata; else those of the face networks, or none where the graph begins with Sub and Mul, as MXNet's
    exporter writes it.
    """
    if "mean" in metadata and "std" in metadata:
        mean, std = (_triple(path, metadata[key]) for key in ("mean", "std"))
        if min(std) > 0:
            return mean, std
        raise UserError(f"{path}: the metadata std must be positive, got {std}")
    first_nodes = [node.op_type for node in onnx.load_from_string(content).graph.node[:2]]
    if first_nodes == ["Sub", "Mul"]:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return NORMALIZATIONS["face"]


def _triple(path: Path, text: str) -> Triple:
    try:
        red, green, blue = (float(value) for value in json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: the metadata mean and std must be lists of three numbers, got {text}") from error
    return red, green, blue


def _open_session(path: str | Path, device: torch.device) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            logger.warning("this ONNX Runtime has no CUDA: the ONNX model runs on the CPU (install onnxruntime-gpu)")
    return onnxruntime.InferenceSession(str(path), options, providers=providers)
