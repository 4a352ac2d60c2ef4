"""JPEGs decoded on the training's device: the workers hand over encoded bytes, and nvJPEG makes pixels of a batch.

A JPEG takes a CPU about 0.1 ms at 112 x 112 and 0.01 ms to read: where cores are few for the GPUs, decoding there gives
the loader several times its rate. nvJPEG's pixels differ from libjpeg-turbo's by some grey levels: embeddings that must
not depend on it are made with one decoder.

What the device decodes is what `is_plain_jpeg` says, of the size that is wanted, and ends as a JPEG does. Any other
image (another size, an orientation tag, grey, PNG, cut short) is decoded by its worker as everywhere else, errors and
substitutes of bad ones included. A damage inside of a JPEG, which costs some pixels alone, may go unnoticed here.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.errors import UserError
from core.images.codec import is_plain_jpeg
from core.images.source import ImageReader

__all__ = ["DeviceDecoder", "EncodedReader", "EncodedSource"]

logger = logging.getLogger(__name__)
END_OF_IMAGE = b"\xff\xd9"
COLOURS = ("YCbCr",)
"""The JPEG colour space that every decoder takes for the same colours."""


class EncodedSource(ImageReader, Protocol):
    """A source that has its images encoded."""

    @property
    def image_size(self) -> int:
        """Side of the decoded images in pixels."""
        ...

    def labels(self) -> np.ndarray:
        """The class of each image, int64 (N,)."""
        ...

    def payload(self, row: int) -> bytes:
        """The encoded image of a row."""
        ...


class EncodedReader:
    """Reads batches of a source for `DeviceDecoder`; runs in the workers."""

    def __init__(self, source: EncodedSource):
        self.source, self.size = source, source.image_size
        self._labels = source.labels()

    def image_name(self, row: int) -> str:
        """As the source's."""
        return self.source.image_name(row)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`encoded` uint8 (bytes,): the images one behind another; `length` int64 (B,): the bytes of each.

        `label` int64 (B,). `decoded` uint8 (K, H, W, 3): the pixels of the K images that are not for the device, whose
        length is 0.
        """
        payloads = [self._for_device(row) for row in rows.tolist()]
        lengths = np.array([len(payload) for payload in payloads], np.int64)
        others = rows[lengths == 0]
        decoded = self.source.read(others)["image"] if len(others) else np.empty((0, self.size, self.size, 3), np.uint8)
        encoded = np.frombuffer(bytearray().join(payloads), np.uint8) if any(payloads) else np.empty(0, np.uint8)
        return {"encoded": encoded, "length": lengths, "decoded": decoded, "label": self._labels[rows]}

    def _for_device(self, row: int) -> bytes:
        """The encoded image, nothing if it is not for the device."""
        try:
            payload = self.source.payload(row)
            whole = payload.endswith(END_OF_IMAGE) and is_plain_jpeg(payload, self.size, COLOURS)
        except UserError:
            raise
        except (OSError, ValueError):  # the source's own way of reading says what is wrong
            return b""
        return payload if whole else b""


class DeviceDecoder:
    """Makes `image` uint8 (B, H, W, 3), on `device`, of what an `EncodedReader` has read.

    `UserError` where PyTorch's companion has no decoder. A batch that the device refuses is read again by the source,
    in this process: a damaged image is reported, or replaced, there.
    """

    def __init__(self, source: EncodedSource, device: torch.device):
        self.source, self.device, self._decode_jpegs = source, device, _jpeg_decoder()

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch of `core.images.loader.load_batches` with `image` in place of the encoded images."""
        others = {name: value for name, value in batch.items() if name not in ("encoded", "length", "decoded")}
        return {"image": self._pixels(batch), **others}

    def _pixels(self, batch: dict[str, Tensor]) -> Tensor:
        lengths, decoded = batch["length"], batch["decoded"]
        here = lengths > 0
        try:
            jpegs = self._decode_jpegs(list(batch["encoded"].split(lengths[here].tolist())), self.device)
        except RuntimeError as error:
            rows = batch["row"].numpy()
            logger.warning(
                "the device does not decode a batch (%s): it is decoded on the CPU", str(error).split("\n")[0]
            )
            return torch.from_numpy(self.source.read(rows)["image"]).to(self.device)
        if not len(decoded):
            return torch.stack(jpegs).permute(0, 2, 3, 1)
        images = torch.empty(len(lengths), *decoded.shape[1:], dtype=torch.uint8, device=self.device)
        # By places that the CPU knows: a mask on the device would be waited for, to count what it takes.
        ours, others = (mask.nonzero().flatten().to(self.device, non_blocking=True) for mask in (here, ~here))
        if jpegs:
            images.index_copy_(0, ours, torch.stack(jpegs).permute(0, 2, 3, 1))
        return images.index_copy_(0, others, decoded.to(self.device, non_blocking=True))


def _jpeg_decoder() -> Callable[[list[Tensor], torch.device], list[Tensor]]:
    """Of JPEGs uint8 (bytes,) on the CPU to uint8 (3, H, W) RGB on a device; `UserError` if there is none.

    torchvision's, which torchvision 0.29 announces to be moved to torchcodec.
    """
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise UserError(
            f"decode_on=device needs torchvision's decode_jpeg ({error}): install torchvision 0.26 to 0.29, or leave "
            "decode_on=workers"
        ) from error

    def decode(jpegs: list[Tensor], device: torch.device) -> list[Tensor]:
        return list(decode_jpeg(jpegs, ImageReadMode.RGB, device=device)) if jpegs else []

    return decode
