"""Batches from worker processes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
import torch

from core.data.recordio import RecordWriter
from core.data.records import RecordDataset
from core.errors import UserError
from core.files import ROOT
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


class Deadly:
    """Images of one pixel; the process that reads row `deadly` is killed, as by a system without memory."""

    def __init__(self, deadly):
        self.deadly = deadly

    def read(self, rows):
        if self.deadly in rows:
            time.sleep(0.3)  # the others go on meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.zeros((len(rows), 1, 1, 3), np.uint8)}

    def image_name(self, row):
        return f"a.rec, record {row}"


@pytest.mark.parametrize("deadly", [0, 17])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_worker_is_told_in_one_line_with_the_images_that_it_was_reading(deadly, num_workers):
    handler = signal.getsignal(signal.SIGCHLD)
    batches = load_batches(Deadly(deadly), [np.arange(i, i + 5) for i in range(0, 40, 5)], num_workers)
    began, seen = time.monotonic(), []
    with pytest.raises(UserError) as caught:
        for batch in batches:
            seen += batch["row"].tolist()
            assert signal.getsignal(signal.SIGCHLD) == handler
    first = deadly // 5 * 5
    assert f"a batch of 5 images, a.rec, record {first} to a.rec, record {first + 4}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert seen == list(range(len(seen))) and len(seen) <= first and time.monotonic() - began < 40


def test_a_worker_killed_while_it_waits_is_told_too():
    batches = load_batches(Deadly(-1), [np.arange(i, i + 5) for i in range(0, 100, 5)], 1)
    next(batches)
    for child in torch.multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="was killed, .* at a batch of 5 images"):
        list(batches)


@pytest.mark.parametrize("num_workers", [1_000, 2**70])
def test_absurd_numbers_of_workers_are_refused_before_one_is_started(num_workers):
    with pytest.raises(UserError, match=f"num_workers is {num_workers}: .* set at most"):
        next(load_batches(Deadly(-1), [[0]], num_workers))


TOO_MANY = """
import os, resource
from core.errors import run_program
from core.images.loader import load_batches
from test_loader import Deadly
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, 1024))
run_program(lambda: list(load_batches(Deadly(-1), [[0]], 40)))
"""


def test_workers_that_the_system_refuses_are_reported_with_their_number():
    """In a fresh process: a fork of this one, with its threads, may wait for ever for a lock that one of them held."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "ci" / "tests"), os.path.dirname(__file__)])
    command = [sys.executable, "-c", TOO_MANY]
    done = subprocess.run(command, stderr=-1, env={**os.environ, "PYTHONPATH": paths}, timeout=200)
    assert done.returncode == 2, done.stderr
    assert b"error: num_workers is 40, and the system does not start so many" in done.stderr


SLOW_START = """
import os, time, cv2
from core.images import loader
from test_loader import Deadly
cv2.setNumThreads = lambda count: time.sleep(1)
workers = loader.load_batches(Deadly(-1), [[0], [1]], 2)
loader._started, started = (lambda data: [started(data), os._exit(2)]), loader._started
next(workers)
"""


def test_workers_that_start_after_the_main_process_has_ended_end_too():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "ci" / "tests"), os.path.dirname(__file__)])
    command = [sys.executable, "-c", SLOW_START]
    done = subprocess.run(command, stderr=-1, env={**os.environ, "PYTHONPATH": paths}, timeout=60)  # waits for all
    assert done.returncode == 2 and not done.stderr


def test_rows_of_a_shuffled_batch_are_listed():
    with pytest.raises(UserError, match=r"3 images, a\.rec, record 7 and others, rows 7 3 17 \(from 0\): "):
        list(load_batches(Deadly(3), [[7, 3, 17]], 1))
