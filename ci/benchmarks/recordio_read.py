"""Images a second that one core reads from a record file and decodes: `RecordDataset.batch` against one by one.

python ci/benchmarks/recordio_read.py

The file holds 112x112 JPEGs of about 5 kB, the mean size in MS1M-V3. The aim is 8,000 images a second.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from core.data.recordio import RecordReader, RecordWriter
from core.data.records import RecordDataset, write_image_records

NUM_IMAGES, NUM_DISTINCT, SIZE, BATCH, ROUNDS = 10_000, 500, 112, 128, 5


def draw_images(rng: np.random.Generator) -> list[bytes]:
    """Smooth random pictures with a little grain, as JPEG."""
    images = []
    for _ in range(NUM_DISTINCT):
        picture = cv2.GaussianBlur(rng.standard_normal((SIZE, SIZE, 3)), (0, 0), 6)
        picture = 128 + 45 * picture / picture.std() + rng.normal(0, 4, (SIZE, SIZE, 1))
        images.append(simplejpeg.encode_jpeg(np.clip(picture, 0, 255).astype(np.uint8), 93, "RGB", "420"))
    return images


def by_batch(prefix: Path) -> Iterator[int]:
    """Images done, batch by batch."""
    data = RecordDataset(prefix)
    for start in range(0, NUM_IMAGES, BATCH):
        yield len(data.batch(range(start, min(start + BATCH, NUM_IMAGES)))[0])


def one_by_one(decode: Callable[[bytes], np.ndarray]) -> Callable[[Path], Iterator[int]]:
    """The plain way: read a record, decode it, stack the batch."""

    def read(prefix: Path) -> Iterator[int]:
        reader = RecordReader(prefix)
        for start in range(1, NUM_IMAGES + 1, BATCH):
            images = [decode(reader[i][1]) for i in range(start, min(start + BATCH, NUM_IMAGES + 1))]
            yield len(np.stack(images))

    return read


def with_opencv(data: bytes) -> np.ndarray:
    """RGB pixels by OpenCV."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def with_pil(data: bytes) -> np.ndarray:
    """RGB pixels by PIL."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def main() -> None:
    """Time each way several times, in turn, and print the best rate of each: the machine may be busy."""
    cv2.setNumThreads(1)
    images = draw_images(np.random.default_rng(0))
    ways = {
        "RecordDataset.batch": by_batch,
        "one by one, OpenCV": one_by_one(with_opencv),
        "one by one, PIL": one_by_one(with_pil),
    }
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "train"
        with RecordWriter(prefix) as writer:
            write_image_records(writer, NUM_IMAGES, 1, ((0, images[i % NUM_DISTINCT]) for i in range(NUM_IMAGES)))
        size = np.mean([len(image) for image in images])
        print(f"{NUM_IMAGES} JPEGs of {SIZE}x{SIZE}, {size:.0f} bytes each, one process, one thread, best of {ROUNDS}")
        rates = dict.fromkeys(ways, 0.0)
        for _ in range(ROUNDS):
            for name, read in ways.items():
                started, used = time.perf_counter(), time.process_time()
                done = sum(read(prefix))
                seconds = time.perf_counter() - started
                rates[name] = max(rates[name], done / seconds)
                print(
                    f"  {name:<20} {done / seconds:8,.0f} images/s, {done / (time.process_time() - used):8,.0f} by CPU"
                )
    for name, rate in rates.items():
        print(f"{name:<20} {rate:8,.0f} images/s")


if __name__ == "__main__":
    main()
