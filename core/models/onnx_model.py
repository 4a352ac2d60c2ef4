"""ONNX files, this project's own and others', as networks that run on ONNX Runtime."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Event, Thread

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from core.errors import UserError
from core.memory import bounded_memory
from core.sizes import size_in_words

__all__ = ["DEFAULT_IMAGE_SIZE", "OnnxNetwork", "load_onnx_network"]

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 112
"""Side in pixels of the images of face networks."""
LEAST_ROOM, OF_FILES, OF_PIXELS = 1 << 30, 8, 512
"""Bytes that a model may take when it is tried: so many, and for each byte of its files and of its input so many."""
MOST_PIXELS = 1 << 30
"""Bytes of the input of a model whose batch is fixed."""
MOST_SECONDS = 60
STOPPED = "terminate flag"
"""In the error of a run that was stopped."""
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
"""The types of input that are fed, as ONNX Runtime names them."""


class OnnxNetwork(nn.Module):
    """Normalised images (B, 3, H, W) to float32 embeddings (B, D), by ONNX Runtime with as many threads as torch uses.

    The output is the one called `embedding`, else the first of two dimensions, else the first. A model with a fixed
    batch runs in parts of that size. `UserError` if the runtime fails. Attributes: `path`, `inputs` and `output`
    (as ONNX Runtime describes them) and `metadata`.
    """

    def __init__(
        self, path: str | Path, device: torch.device, open_size: int = DEFAULT_IMAGE_SIZE, trial: bool = False
    ):
        """`open_size`: side of the images of a model that leaves height and width open.

        `trial`: of a model that is not trusted yet. Nothing is computed when it is opened, and it is stopped after
        `MOST_SECONDS` of the processor.
        """
        super().__init__()
        self.path = Path(path)
        self._trial = trial
        self._session = _open_session(path, device, trial)
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
        try:
            with _stopped_in_time() if self._trial else nullcontext() as options:
                (embeddings,) = self._session.run([self.output.name], {self.inputs[0].name: pixels}, options)
        except Exception as error:  # ONNX Runtime has many exceptions without a common base
            if self._trial:
                raise
            raise UserError(
                f"ONNX Runtime cannot run {self.path} on {len(pixels)} images at once: {error}; set a smaller batch, "
                "or export the model again"
            ) from error
        embeddings = np.asarray(embeddings, np.float32)
        return embeddings.reshape(embeddings.shape[:2]) if set(embeddings.shape[2:]) == {1} else embeddings


def load_onnx_network(path: Path, device: torch.device, open_size: int, disk: int) -> tuple[OnnxNetwork, int]:
    """The network in an `.onnx` file and its embedding size; `open_size` as in `OnnxNetwork`.

    It is tried on the CPU first, in bounded memory and time, since a small file may ask for any amount of both. `disk`:
    bytes of its files. `UserError` if ONNX Runtime cannot load it or run it on an image, or if it is not an encoder of
    square images.
    """
    with bounded_memory(LEAST_ROOM + OF_FILES * disk):
        tried = _opened(path, torch.device("cpu"), open_size, trial=True)
    batch, side = tried.fixed_batch or 1, tried.image_size
    pixels = 12 * batch * side**2
    if pixels > MOST_PIXELS:
        raise UserError(
            f"{path} takes {batch} images of {side}x{side} at once, {size_in_words(pixels)}: export it with a smaller "
            "batch"
        )
    try:
        with bounded_memory(LEAST_ROOM + OF_FILES * disk + OF_PIXELS * pixels):
            embedding = _embedding_of_black(path, tried)
    except UserError as error:
        if device.type == "cpu" or "NOT_IMPLEMENTED" not in str(error):  # by the CPU
            raise
        embedding = None
    del tried
    network = _opened(path, device, open_size)
    if embedding is None:
        embedding = _embedding_of_black(path, network)
    if embedding.ndim != 2:
        raise UserError(
            f"{path} is not an image encoder: expected an output (batch, size), got {tuple(embedding.shape)}"
        )
    return network, embedding.shape[1]


def _opened(path: Path, device: torch.device, open_size: int, trial: bool = False) -> OnnxNetwork:
    try:
        network = OnnxNetwork(path, device, open_size, trial)
        _require_image_input(path, network)  # in here: names that are no text are found when they are asked for
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime has many exceptions without a common base
        raise UserError(f"ONNX Runtime cannot load {path}: {error}") from error
    return network


def _embedding_of_black(path: Path, network: OnnxNetwork) -> Tensor:
    """Of an image of zeros, (1, D) of an encoder."""
    size = network.image_size
    try:
        return network(torch.zeros(1, 3, size, size))
    except Exception as error:
        if (said := str(error)) and ("bad_alloc" in said or "allocate" in said or STOPPED in said):
            what = f"{MOST_SECONDS} seconds of a processor" if STOPPED in said else "the memory of encoders of its size"
            raise UserError(
                f"{path} takes more than {what} for one image of {size}x{size} ({said.splitlines()[0][:300]}): "
                "export it again, or name another model"
            ) from error
        raise UserError(
            f"ONNX Runtime cannot run {path} on images of {size}x{size} (if its images have another size, export it "
            f"with fixed height and width): {error}"
        ) from error


@contextmanager
def _stopped_in_time() -> Iterator[onnxruntime.RunOptions]:
    """Options of a run that ends between two operators when the process has worked for so many seconds."""
    options, done = onnxruntime.RunOptions(), Event()
    begun = time.process_time()

    def watch() -> None:
        while not done.wait(0.2):
            if time.process_time() - begun > MOST_SECONDS:
                options.terminate = True

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield options
    finally:
        done.set()
        watcher.join()


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
    if network.fixed_batch is not None and network.fixed_batch < 1:
        raise UserError(f"{path} takes batches of {network.fixed_batch} images: export it with an open batch")
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    if network.image_size < 1:
        raise UserError(f"{path} takes images of {height}x{width}: export it for images with pixels")
    if isinstance(width, int) and width != network.image_size:
        raise UserError(f"{path} takes images of {height}x{width}: only square images are supported")


def _open_session(path: str | Path, device: torch.device, trial: bool = False) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if trial else torch.get_num_threads()
    if trial:  # or constants would be computed here, where nothing can stop them
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
    options.log_severity_level = 4  # what fails is raised, and said in one line
    providers: list[str | tuple[str, dict[str, int]]] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        else:
            logger.warning("this ONNX Runtime has no CUDA: the ONNX model runs on the CPU (install onnxruntime-gpu)")
    return onnxruntime.InferenceSession(str(path), options, providers=providers)
