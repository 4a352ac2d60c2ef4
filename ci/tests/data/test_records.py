"""Image rows of record files: InsightFace's layouts and im2rec's, labels, decoding, errors."""

import multiprocessing
import pickle
import struct
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import simplejpeg

from core.data.recordio import MAGIC_BYTES, RecordReader, RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError
from core.images.codec import decode_image


def picture(value, size=16):
    image = np.full((size, size, 3), value, np.uint8)
    image[: size // 2] = (200, 100, 30)
    return image


def jpeg(value, size=16):
    return simplejpeg.encode_jpeg(picture(value, size), 95, "RGB", "444")


LABELS = [0, 0, 1, 2, 2, 2]
JPEGS = [jpeg(40 * i) for i in range(6)]


def insightface(prefix, classes=3, ranges="none", promised=6, labels=LABELS, jpegs=JPEGS):
    images = [(i, (label, 0) if i % 2 else label, data) for i, (label, data) in enumerate(zip(labels, jpegs), start=1)]
    head = [(0, (promised + 1, classes), b"")]
    tail = [(7, (1, 3), b""), (8, (3, 4), b""), (9, (4, 7), b"")] if ranges != "none" else []
    with RecordWriter(prefix) as writer:
        for record in images + tail + head if ranges == "header last" else head + images + tail:
            writer.write(*record)
    return prefix


@pytest.mark.parametrize(("classes", "ranges"), [(3, "none"), (10, "after"), (10, "header last"), (3, "after")])
def test_insightface_layouts_give_the_same_rows(tmp_path, classes, ranges):
    data = RecordDataset(insightface(tmp_path / "a", classes, ranges))
    assert (len(data), data.num_images, data.num_classes, data.image_size) == (6, 6, 3, 16)
    assert data.labels().dtype == np.int64
    assert data.labels().tolist() == LABELS
    assert [data.payload(i) for i in range(6)] == JPEGS


def test_im2rec_file_without_header_counts_classes_from_the_labels(tmp_path):
    with RecordWriter(tmp_path / "a") as writer:
        for i, (label, data) in enumerate(zip([4, 0, 2], JPEGS)):
            writer.write(i, label, data)
    data = RecordDataset(tmp_path / "a")
    assert (len(data), data.num_classes, data.labels().tolist()) == (3, 5, [4, 0, 2])


def test_labels_of_split_records_and_across_blocks_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("core.data.records.LABEL_BLOCK", 3)
    with RecordWriter(tmp_path / "a") as writer:
        for i in range(8):
            writer.write(i, i if i % 2 else (i, 1, 2), MAGIC_BYTES * (i % 3))
    assert RecordDataset(tmp_path / "a").labels().tolist() == list(range(8))


def test_batch_decodes_rows_in_the_order_asked_for(tmp_path):
    data = RecordDataset(insightface(tmp_path / "a"))
    images, labels = data.batch([5, 0, 5])
    assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and labels.tolist() == [2, 0, 2]
    for image, row in zip(images, (5, 0, 5)):
        bgr = cv2.imdecode(np.frombuffer(JPEGS[row], np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(image.astype(int) - bgr[..., ::-1]).max() <= 2  # two decoders may round differently
    assert np.abs(images[0, 0, 0].astype(int) - (200, 100, 30)).max() < 8  # RGB, not BGR


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_lossless_formats_and_grey_jpeg_decode_to_rgb(tmp_path, suffix):
    image = picture(7)
    data = cv2.imencode(suffix, image[..., ::-1])[1].tobytes()
    assert (decode_image(data) == image).all()
    grey = decode_image(cv2.imencode(".jpg", image[..., 0])[1].tobytes())
    assert grey.shape == (16, 16, 3) and (grey[..., 0] == grey[..., 2]).all()


def test_images_of_another_size_are_resized_only_when_asked_for(tmp_path):
    jpegs = [*JPEGS[:3], jpeg(99, 40), *JPEGS[4:]]
    insightface(tmp_path / "a", jpegs=jpegs)
    with pytest.raises(UserError, match="a.rec: record 4 is an image of 40x40, the first one of 16x16"):
        RecordDataset(tmp_path / "a").batch(range(6))
    images, _ = RecordDataset(tmp_path / "a", image_size=20).batch(range(6))
    assert images.shape == (6, 20, 20, 3)
    assert np.abs(images[3, 15].astype(int) - 99).max() < 6


def huge_png():
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    "payload",
    [JPEGS[0][:200], b"", b"no image", b"\xff\xd8\xff", huge_png(), b"P6\n99999999 99999999\n255\n"],
    ids=["cut", "empty", "text", "no JPEG", "huge PNG", "huge PNM"],
)
def test_undecodable_image_is_named(tmp_path, payload):
    data = RecordDataset(insightface(tmp_path / "a", jpegs=[*JPEGS[:4], payload, JPEGS[5]]))
    with pytest.raises(UserError, match="a.rec: record 5 is not an image"):
        data.batch([0, 4])


@pytest.mark.parametrize("label", [-1, 0.5, np.nan, np.inf, 3])
def test_label_that_is_not_a_class_is_named(tmp_path, label):
    data = RecordDataset(insightface(tmp_path / "a", labels=[0, 0, 1, label, 2, 2]))
    for read in (data.labels, lambda: data.batch([3])):
        with pytest.raises(UserError, match="a.rec: record 4 has the label"):
            read()


@pytest.mark.parametrize("header", [(np.nan, 3), (7, np.nan), (np.inf, 3), (7, np.inf), (7, -1), (1e30, 3), (6.5, 3)])
def test_header_without_numbers_of_images_and_classes_is_refused(tmp_path, header):
    with pytest.raises(UserError, match="a.rec: its header, record 0, has .* not the number of images"):
        RecordDataset(insightface(tmp_path / "a", promised=header[0] - 1, classes=header[1]))


class ManyRecords:
    """In place of a reader: a header, `images` records with an image and `ranges` of a class, none of them on disk."""

    file = SimpleNamespace(size=0)

    def __init__(self, images, ranges, end, classes):
        self.images, self.header = images, (float(np.float32(end)), float(np.float32(classes)))
        self.keys = self.offsets = np.arange(images + ranges + 1, dtype=np.int32)

    def __len__(self):
        return len(self.keys)

    def view(self, i):
        return (self.header, b"") if i == 0 else ((4.0,), b"image" if i <= self.images else b"")

    def end(self, i):
        return 0


@pytest.mark.parametrize("images", [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3])
@pytest.mark.parametrize("ranges", [0, 5])
def test_more_images_than_float32_counts_are_all_found(monkeypatch, images, ranges):
    end = images + 1
    reader = ManyRecords(images, ranges, end, end + ranges if ranges else 5)
    monkeypatch.setattr("core.data.records.RecordReader", lambda prefix: reader)
    data = RecordDataset("a")
    assert (data.num_images, data.num_classes) == (images, 5)
    reader.header = (float(np.float32(end + 8)), 5.0)
    with pytest.raises(UserError, match="promises"):
        RecordDataset("a")


def test_more_classes_than_images_are_not_taken_for_class_ranges(tmp_path):
    data = RecordDataset(insightface(tmp_path / "a", classes=101, labels=[0, 0, 0, 100, 100, 100]))
    assert data.num_classes == 101 and data.labels().max() == 100


def test_header_that_promises_more_images_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="promises 7 images, but 6"):
        RecordDataset(insightface(tmp_path / "a", promised=7))


def test_file_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images"):
        RecordDataset(insightface(tmp_path / "a", promised=0, labels=[], jpegs=[]))


def test_truncated_file_is_refused_when_it_is_opened(tmp_path):
    prefix = insightface(tmp_path / "a")
    offset = RecordReader(prefix).offsets[5]
    path = tmp_path / "a.rec"
    path.write_bytes(path.read_bytes()[: offset + 50])
    with pytest.raises(UserError, match="a.rec: record 6 is damaged"):
        RecordDataset(prefix)


def test_fingerprint_depends_on_content_alone(tmp_path):
    (tmp_path / "sub").mkdir()
    first = RecordDataset(insightface(tmp_path / "a")).fingerprint
    assert RecordDataset(insightface(tmp_path / "sub" / "b")).fingerprint == first
    assert RecordDataset(insightface(tmp_path / "a"), image_size=8).fingerprint == first
    assert RecordDataset(insightface(tmp_path / "c", labels=[0, 1, 1, 2, 2, 2])).fingerprint != first
    assert RecordDataset(insightface(tmp_path / "d", jpegs=[*JPEGS[:5], JPEGS[0]])).fingerprint != first


def test_fingerprint_depends_on_every_label(tmp_path):
    labels = np.arange(300) % 10
    fingerprints = set()
    for changed in (None, *range(0, 300, 23)):
        with RecordWriter(tmp_path / "a") as writer:
            for i, label in enumerate(labels):
                writer.write(i, label + (i == changed), JPEGS[0])
        fingerprints.add(RecordDataset(tmp_path / "a").fingerprint)
    assert len(fingerprints) == 15


def send_batch(data, queue):
    images, labels = data.batch([1, 4])
    queue.put((int(images.sum()), labels.tolist()))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_decode_the_same_batches(tmp_path, method):
    data = RecordDataset(insightface(tmp_path / "a"))
    expected = int(data.batch([1, 4])[0].sum()), [0, 2]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=send_batch, args=(data, queue))
    worker.start()
    assert queue.get(timeout=60) == expected
    worker.join(60)
    assert worker.exitcode == 0
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint
