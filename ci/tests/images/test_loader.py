"""Batches from worker processes."""

import numpy as np
import pytest
import simplejpeg
import torch

from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError
from core.images.loader import load_batches

ROWS = [np.arange(start, start + 7) for start in range(0, 63, 7)][::-1] + [np.array([71, 0, 35])]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_with_images_labels_and_columns_joined_by_row(tiny_records, tmp_path, num_workers):
    data = RecordDataset(tiny_records)
    np.save(tmp_path / "column.npy", np.random.default_rng(0).normal(size=(72, 4)).astype(np.float32))
    column = np.load(tmp_path / "column.npy", mmap_mode="r")
    batches = list(load_batches(data, iter(ROWS), num_workers, {"old_embedding": column, "half": np.arange(72) / 2}))
    assert len(batches) == len(ROWS)
    for rows, batch in zip(ROWS, batches):
        images, labels = data.batch(rows)
        assert np.array_equal(batch["row"], rows) and batch["row"].dtype == torch.int64
        assert np.array_equal(batch["image"], images) and batch["image"].dtype == torch.uint8
        assert np.array_equal(batch["label"], labels) and batch["label"].dtype == torch.int64
        assert np.array_equal(batch["old_embedding"], column[rows])
        assert np.array_equal(batch["half"], rows / 2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_undecodable_image_reaches_the_main_process_as_user_error_naming_file_and_record(tmp_path, num_workers):
    with RecordWriter(tmp_path / "train") as writer:
        for key in range(6):
            image = np.full((8, 8, 3), key, np.uint8)
            writer.write(key, float(key), b"\xff\xd8 no JPEG" if key == 3 else simplejpeg.encode_jpeg(image))
    data = RecordDataset(tmp_path / "train")
    with pytest.raises(UserError, match=r"train\.rec: record 3 .*decoded"):
        list(load_batches(data, [[0, 1], [2, 3], [4, 5]], num_workers))


def test_loader_draws_nothing_from_the_default_generator(tiny_records):
    data = RecordDataset(tiny_records)
    state = torch.get_rng_state()
    list(load_batches(data, [[0, 1]], 0))
    list(load_batches(data, [[0, 1]], 1))
    assert torch.equal(torch.get_rng_state(), state)
