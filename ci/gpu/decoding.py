"""JPEGs decoded on the device beside one core of the CPU: the difference of their pixels, and images a second."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import simplejpeg
import torch

from ci.benchmarks.records import SIZE, draw_images
from ci.gpu.rates import seconds_a_call
from ci.gpu.report import Error, Report
from core.images.codec import decode_image
from core.images.device_decoding import DeviceDecoder, EncodedReader
from core.parallel.threads import one_thread

MEAN_DIFFERENCE = 0.2
"""Grey levels that decoders of the same interpolation may differ by in the mean: they round in different ways."""


class Payloads:
    """Encoded images in memory, as a source."""

    image_size = SIZE

    def __init__(self, payloads: Sequence[bytes]):
        self.payloads = payloads

    def payload(self, row: int) -> bytes:
        return self.payloads[row]

    def labels(self) -> np.ndarray:
        return np.zeros(len(self.payloads), np.int64)

    def image_name(self, row: int) -> str:
        return f"image {row}"

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        images = np.empty((len(rows), SIZE, SIZE, 3), np.uint8)
        for row, out in zip(rows.tolist(), images):
            decode_image(self.payloads[row], out)
        return {"image": images}


class Decoders:
    """Both decoders and a batch of JPEGs."""

    def __init__(self, device: torch.device, batch: int):
        self.device, self.rows = device, np.arange(batch)
        self.source = Payloads(draw_images(np.random.default_rng(0), batch))
        self.decoder = DeviceDecoder(self.source, device)
        read = EncodedReader(self.source).read(self.rows)
        self.encoded = {name: torch.from_numpy(array) for name, array in read.items()}
        self.encoded["row"] = torch.from_numpy(self.rows)

    def compare(self) -> dict[str, Error]:
        """The mean difference in grey levels from libjpeg-turbo, from its simple interpolation of colours or the other.

        The files have colours at half resolution. The codec interpolates them linearly, nvJPEG repeats them.
        """
        found = self.decoder(self.encoded)["image"].cpu().numpy().astype(int)
        linear = self.source.read(self.rows)["image"]
        repeated = np.stack([simplejpeg.decode_jpeg(jpeg, "RGB", fastupsample=True) for jpeg in self.source.payloads])
        to_linear, to_repeated = (float(np.abs(found - other).mean()) for other in (linear, repeated))
        return {
            f"mean of grey levels, {to_linear:.2f} from the codec's": Error(
                min(to_linear, to_repeated), MEAN_DIFFERENCE
            )
        }

    def rate(self, decode: Callable[[], object], seconds: float) -> tuple[str, dict[str, Any]]:
        with one_thread():
            speed = len(self.rows) / seconds_a_call(decode, self.device, seconds)
        return f"{speed:8.0f} images/s", {"images_per_second": speed}

    def on_device(self) -> object:
        """Bytes on the host in, pixels on the device out."""
        return self.decoder(self.encoded)

    def on_core(self) -> object:
        return self.source.read(self.rows)


def check_decoding(report: Report, device: torch.device, quick: bool) -> None:
    """Pixels, then rates."""

    @cache
    def decoders() -> Decoders:
        """Made by the first check, which says what is missing."""
        return Decoders(device, 16 if quick else 128)

    seconds = 0.01 if quick else 1.0
    report.check("decoding", "JPEGs on the device", lambda: decoders().compare(), 10)
    report.measure("decoding", "on the device", lambda: decoders().rate(decoders().on_device, seconds), 5)
    report.measure("decoding", "by a core of the CPU", lambda: decoders().rate(decoders().on_core, seconds), 5)
