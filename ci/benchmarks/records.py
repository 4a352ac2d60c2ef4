"""Images a second that one core reads from a record file and decodes, beside the bare decoder and one by one.

    python -m ci.benchmarks records

The file holds 112x112 JPEGs of about 5 kB, the mean size in MS1M-V3. The bare decoder has the same JPEGs in memory.
A loader on a GPU ends at the batch of bytes; mirroring and normalising are then the device's.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image

from ci.benchmarks.harness.bench import Bench
from core.data.recordio import RecordReader, RecordWriter
from core.data.records import RecordDataset, write_image_records
from core.images.transforms import TrainTransform
from core.parallel.threads import one_thread

QUICK = {"images": 200}
NUM_DISTINCT, SIZE, BATCH = 500, 112, 128


def draw_images(rng: np.random.Generator, count: int) -> list[bytes]:
    """Smooth random pictures with a little grain, as JPEG."""
    images = []
    for _ in range(count):
        picture = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE, 3)), (0, 0), 6)
        picture = 128 + 45 * picture / picture.std() + rng.normal(0, 4, (SIZE, SIZE, 1))
        images.append(simplejpeg.encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8), 93, "RGB", "420"))
    return images


def write_images(prefix: Path, count: int) -> list[bytes]:
    """A record file of `count` images, of which at most `NUM_DISTINCT` differ; returns these."""
    drawn = draw_images(np.random.default_rng(0), min(count, NUM_DISTINCT))
    with RecordWriter(prefix) as writer:
        write_image_records(writer, count, 1, ((0, drawn[i % len(drawn)]) for i in range(count)))
    return drawn


def by_batch(prefix: Path, count: int) -> np.ndarray:
    """The last batch of all images."""
    data = RecordDataset(prefix)
    for start in range(0, count, BATCH):
        images, _ = data.batch(range(start, min(start + BATCH, count)))
    return images


def to_network(prefix: Path, count: int) -> torch.Tensor:
    """The last batch of all images as a network takes it: half of them mirrored, normalised."""
    data, transform = RecordDataset(prefix), TrainTransform("face", ["flip"])
    for start in range(0, count, BATCH):
        images = transform(torch.from_numpy(data.batch(range(start, min(start + BATCH, count)))[0]))
    return images


def plain_to_network(images: torch.Tensor) -> torch.Tensor:
    """The plain way from bytes: numbers, normalised, mirrored."""
    normal = images.float().sub_(torch.full((3,), 127.5)).div_(torch.full((3,), 127.5)).permute(0, 3, 1, 2)
    return torch.where(torch.rand(len(normal), 1, 1, 1) < 0.5, normal.flip(3), normal)


def one_by_one(decode: Callable[[bytes], np.ndarray], prefix: Path, count: int) -> np.ndarray:
    """The plain way: read a record, decode it, stack the batch. The last batch of all images."""
    reader = RecordReader(prefix)
    for start in range(1, count + 1, BATCH):
        images = np.stack([decode(reader[i][1]) for i in range(start, min(start + BATCH, count + 1))])
    return images


def bare_decoder(images: list[bytes], count: int) -> None:
    """Decode as many images into batches."""
    for start in range(0, count, BATCH):
        pixels = np.empty((min(BATCH, count - start), SIZE, SIZE, 3), np.uint8)
        for i, out in enumerate(pixels, start):
            simplejpeg.decode_jpeg(images[i % len(images)], "RGB", buffer=out)


def with_opencv(data: bytes) -> np.ndarray:
    """RGB pixels by OpenCV."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def with_pil(data: bytes) -> np.ndarray:
    """RGB pixels by PIL."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def run(bench: Bench, *, images: int = 10_000) -> None:
    prefix = bench.folder / "train"
    drawn = write_images(prefix, images)
    bench.note(f"JPEGs of {SIZE}x{SIZE}, {np.mean([len(image) for image in drawn]):.0f} bytes each, one thread")
    ways = {
        "RecordDataset.batch": partial(by_batch, prefix, images),
        "bare decoder": partial(bare_decoder, drawn, images),
        "the same, mirrored, normalised": partial(to_network, prefix, images),
        "one by one, OpenCV": partial(one_by_one, with_opencv, prefix, images),
        "one by one, PIL": partial(one_by_one, with_pil, prefix, images),
    }
    cv2.setNumThreads(1)
    with one_thread():
        found = bench.compare("read and decode", ways, images, "images")
        batch = torch.from_numpy(by_batch(prefix, min(BATCH, images)))
        ways = {
            "TrainTransform": partial(TrainTransform("face", ["flip"]), batch),
            "PyTorch": partial(plain_to_network, batch),
        }
        bench.compare("mirror and normalise", ways, len(batch), "images")
    for name in ("one by one, OpenCV", "one by one, PIL"):
        np.testing.assert_array_equal(found["RecordDataset.batch"], found[name])
