"""ONNX files, this project's own and others', as networks that run on ONNX Runtime."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from core.errors import UserError

__all__ = ["DEFAULT_IMAGE_SIZE", "OnnxNetwork", "load_onnx_network"]

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 112
"""Side in pixels of the images of face networks."""
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
"""The types of input that are fed, as ONNX Runtime names them."""


class OnnxNetwork(nn.Module):
    """Normalised images (B, 3, H, W) to float32 embeddings (B, D), by ONNX Runtime with as many threads as torch uses.

    The output is the one called `embedding`, else the first of two dimensions, else the first. A model with a fixed
    batch runs in parts of that size. Failures of the runtime are passed on. Attributes: `path`, `inputs` and `output`
    (as ONNX Runtime describes them) and `metadata`.
    """

    def __init__(self, path: str | Path, device: torch.device, open_size: int = DEFAULT_IMAGE_SIZE):
        """`open_size`: side of the images of a model that leaves height and width open."""
        super().__init__()
        self.path = Path(path)
        self._session = _open_session(path, device)
        self._open_size = open_size
        self.inputs = self._session.get_inputs()
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        outputs = self._session.get_outputs()
        flat = [output for output in outputs if len(output.shape or ()) in (0, 2)]
        named = [output for output in outputs if output.name == "embedding"]
        self.output = (named or flat or outputs)[0]

    @property
    def image_size(self) -> int:
        """Height of the images in pixels."""
        return self._open_size if self.size_is_open else self.inputs[0].shape[1 if self.channels_last else 2]

    @property
    def size_is_open(self) -> bool:
        """Whether the model says nothing of the height of its images."""
        return not isinstance(self.inputs[0].shape[1 if self.channels_last else 2], int)

    @property
    def fixed_batch(self) -> int | None:
        """The number of images that the model takes at a time, if it is fixed."""
        batch = self.inputs[0].shape[0]
        return batch if isinstance(batch, int) else None

    @property
    def takes_pixels(self) -> bool:
        """Whether the input is of type uint8, so that nothing but pixels can be fed."""
        return TYPES[self.inputs[0].type] is np.uint8

    @property
    def channels_last(self) -> bool:
        """Whether the input is (B, H, W, 3), as in networks from Keras."""
        shape = self.inputs[0].shape
        return shape[1] != 3 and shape[3] == 3

    def as_input(self, images: np.ndarray) -> np.ndarray:
        """Images (B, 3, H, W) in the type and layout of the model's input."""
        laid_out = images.transpose(0, 2, 3, 1) if self.channels_last else images
        return np.ascontiguousarray(laid_out, TYPES[self.inputs[0].type])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, D), on the device of `images`."""
        pixels = self.as_input(images.cpu().numpy())
        fixed = self.fixed_batch
        if fixed is None or fixed == len(pixels):
            return torch.from_numpy(self._run(pixels)).to(images.device)
        padded = np.concatenate((pixels, np.zeros((-len(pixels) % fixed, *pixels.shape[1:]), pixels.dtype)))
        parts = [self._run(part) for part in np.split(padded, len(padded) // fixed)]
        return torch.from_numpy(np.concatenate(parts)[: len(pixels)]).to(images.device)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        (embeddings,) = self._session.run([self.output.name], {self.inputs[0].name: pixels})
        embeddings = np.asarray(embeddings, np.float32)
        return embeddings.reshape(embeddings.shape[:2]) if set(embeddings.shape[2:]) == {1} else embeddings


def load_onnx_network(path: Path, device: torch.device, open_size: int) -> tuple[OnnxNetwork, int]:
    """The network in an `.onnx` file and its embedding size; `open_size` as in `OnnxNetwork`.

    `UserError` if ONNX Runtime cannot load it or run it on an image, or if it is not an encoder of square images.
    """
    try:
        network = OnnxNetwork(path, device, open_size)
    except Exception as error:  # ONNX Runtime has many exceptions without a common base
        raise UserError(f"ONNX Runtime cannot load {path}: {error}") from error
    _require_image_input(path, network)
    size = network.image_size
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


def _require_image_input(path: Path, network: OnnxNetwork) -> None:
    """`UserError` unless the model has one input, of square colour images."""
    described = ", ".join(f"{item.name} {item.type} {item.shape}" for item in network.inputs)
    shape = network.inputs[0].shape if len(network.inputs) == 1 else ()
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise UserError(
            f"{path} is not an image encoder: expected one input (batch, 3, height, width) or (batch, height, width, "
            f"3), got {described or 'none'}"
        )
    if network.inputs[0].type not in TYPES:
        raise UserError(
            f"{path} takes {described}: only inputs of type float or uint8 are fed; export it with one (a converter to "
            "float16 can keep the types of input and output)"
        )
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    if isinstance(width, int) and width != network.image_size:
        raise UserError(f"{path} takes images of {height}x{width}: only square images are supported")


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
