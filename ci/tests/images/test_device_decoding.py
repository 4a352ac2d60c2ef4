"""JPEGs that the workers hand over encoded: the pixels of a batch, and what the device does not decode.

On the CPU torchvision decodes as on a GPU, with libjpeg-turbo in place of nvJPEG: the same pixels as the codec's.
"""

import io
import os

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from core.data.lists import ListDataset
from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError
from core.images.device_decoding import DeviceDecoder, EncodedReader
from core.images.loader import load_batches

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
CPU = torch.device("cpu")


def picture(seed: int, side: int = 32) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (side, side, 3))
    return np.clip(128 + 300 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)


def jpeg(seed: int, side: int = 32, **options) -> bytes:
    """By Pillow."""
    file = io.BytesIO()
    Image.fromarray(picture(seed, side)).convert(options.pop("mode", "RGB")).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(5, exif=exif)


def png() -> bytes:
    return cv2.imencode(".png", picture(7))[1].tobytes()


PLAIN = [jpeg(0), jpeg(1), simplejpeg.encode_jpeg(picture(2), 90, "RGB", "420"), jpeg(3, progressive=True)]
OTHERS = [turned(), png(), jpeg(6, mode="L"), jpeg(8, side=48), jpeg(9, mode="CMYK"), jpeg(4) + b"\0\0"]


def write(folder, payloads: list[bytes]) -> RecordDataset:
    with RecordWriter(folder / "a") as writer:
        for i, payload in enumerate(payloads):
            writer.write(i, i % 3, payload)
    return RecordDataset(folder / "a", image_size=32)


def decoded(data, batches, num_workers: int = 0) -> list[dict]:
    return list(map(DeviceDecoder(data, CPU), load_batches(EncodedReader(data), batches, num_workers)))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("payloads", [PLAIN, OTHERS, PLAIN + OTHERS, OTHERS[:1] + PLAIN[:1]])
def test_batches_are_those_that_the_workers_decode(tmp_path, payloads, num_workers):
    data = write(tmp_path, payloads)
    rows = np.random.default_rng(0).integers(0, len(payloads), (3, 7))
    ours, expected = decoded(data, rows, num_workers), list(load_batches(data, rows, 0))
    assert len(ours) == 3
    for one, other in zip(ours, expected):
        assert one.keys() == other.keys() and one["image"].dtype == torch.uint8
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_plain_jpegs_alone_are_handed_over_encoded(tmp_path):
    data = write(tmp_path, PLAIN + OTHERS)
    read = EncodedReader(data).read(np.arange(10))
    assert read["length"].tolist() == [len(payload) for payload in PLAIN] + [0] * 6
    assert read["encoded"].tobytes() == b"".join(PLAIN) and read["decoded"].shape == (6, 32, 32, 3)
    assert np.array_equal(read["decoded"], data.batch(range(4, 10))[0])


def test_mixed_batch_makes_no_mask_on_the_device_which_would_be_waited_for(tmp_path):
    class NoMasks(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            assert not (isinstance(made, torch.Tensor) and made.is_meta and made.dtype is torch.bool), operation
            return made

    data, device = write(tmp_path, [PLAIN[0], OTHERS[0], PLAIN[1]]), torch.device("meta")
    decoder = DeviceDecoder(data, device)
    decoder._decode_jpegs = lambda jpegs, device: (
        [torch.empty(3, 32, 32, dtype=torch.uint8, device=device)] * len(jpegs)
    )
    (batch,) = load_batches(EncodedReader(data), [[0, 1, 2]], 0)
    with NoMasks():
        assert decoder(batch)["image"].shape == (3, 32, 32, 3)


def test_records_that_change_under_a_run_are_told(tmp_path):
    data = write(tmp_path, PLAIN)
    reader = EncodedReader(data)
    assert len(reader.read(np.arange(4))["length"]) == 4
    os.utime(tmp_path / "a.rec", ns=(1, 1))
    with pytest.raises(UserError, match=r"a\.rec has changed while it was read"):
        reader.read(np.arange(4))


def test_image_that_is_cut_short_is_an_error_with_its_name(tmp_path):
    data = write(tmp_path, [*PLAIN, jpeg(4)[:-100]])
    with pytest.raises(UserError, match="a.rec: record 4 is not an image that can be decoded"):
        decoded(data, [[0, 4]])


def test_batch_that_the_device_refuses_is_read_by_the_source(tmp_path, caplog):
    def refuse(jpegs, device):
        raise RuntimeError("image not decoded: [code=2]\nmore")

    data = write(tmp_path, PLAIN)
    decoder = DeviceDecoder(data, CPU)
    decoder._decode_jpegs = refuse
    (batch,) = map(decoder, load_batches(EncodedReader(data), [[3, 0]], 0))
    assert np.array_equal(batch["image"].numpy(), data.batch([3, 0])[0]) and batch["row"].tolist() == [3, 0]
    assert "the device does not decode a batch (image not decoded: [code=2]): it is decoded on the CPU" in caplog.text


def test_bad_image_of_a_list_is_replaced(tmp_path):
    for i, payload in enumerate([PLAIN[0], PLAIN[1], PLAIN[2][:200]]):
        (tmp_path / f"{i}.jpg").write_bytes(payload)
    (tmp_path / "list.txt").write_text("0.jpg 0\n1.jpg 1\n2.jpg 1\n")
    data = ListDataset(tmp_path / "list.txt", image_size=32, skip_bad=True)
    (batch,) = decoded(data, [[0, 2]])
    assert np.array_equal(batch["image"].numpy(), data.batch([0, 1])[0]) and batch["label"].tolist() == [0, 1]


def test_decoder_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.io.decode_jpeg", None)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    with pytest.raises(UserError, match="decode_on=device needs torchvision's decode_jpeg"):
        DeviceDecoder(write(tmp_path, PLAIN), CPU)
