"""The one loader of images: batches of rows, read in order by worker processes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from core.errors import UserError
from core.images.source import ImageReader

__all__ = ["Column", "WorkersError", "load_batches"]

MOST_WORKERS, WORKERS_A_CORE = 64, 4
"""Processes a rank that are never too many; more are for machines with so many cores."""
MOST_LISTED = 256
"""Rows in a message."""


class Column(Protocol):
    """An array (N, ...), or what reads rows like one."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...  # noqa: D105


class WorkersError(UserError):
    """The processes that read images could not be started, or were killed: the images themselves may be whole."""


class _Batches(Dataset):
    """Maps the number and the rows of a batch to its tensors; runs in the workers.

    `at_work` int64 (W, 2), shared with them, has each worker's process number and the batch that it began last.
    """

    def __init__(self, source: ImageReader, columns: Mapping[str, Column], at_work: Tensor):
        self.source, self.columns, self.at_work = source, columns, at_work

    def __getitem__(self, index: tuple[int, np.ndarray]) -> dict[str, Tensor] | UserError | OSError:
        number, rows = index
        worker = get_worker_info()
        if worker is not None:
            self.at_work[worker.id, 1] = number
        try:
            arrays = self.source.read(rows)
            entries = {name: np.array(column[rows]) for name, column in self.columns.items()}
        except (UserError, OSError) as error:
            return error  # raised in the main process: torch would bury its line in a worker's traceback
        except MemoryError as error:
            images = _images(self.source, rows)
            return WorkersError(f"no memory for {images}: {error}; set a smaller batch or image size")
        return {name: torch.from_numpy(array) for name, array in {**arrays, "row": rows, **entries}.items()}


def load_batches(
    source: ImageReader,
    row_batches: Iterable[Sequence[int] | np.ndarray],
    num_workers: int,
    columns: Mapping[str, Column] | None = None,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> Iterator[dict[str, Tensor]]:
    """Yield, in the order of `row_batches`, dicts of CPU tensors read by `num_workers` processes (0: by this one).

    A dict holds what `source.read` gives for the rows, `row` int64 (B,), and under the name of each of `columns` its
    entries for the rows (memory-mapped columns are read in the workers). `UserError` if an image cannot be read, if
    so many processes cannot be started, and, naming the images, if one of them is killed while it reads.
    Memory: `prefetch` batches a worker.
    """
    _require_startable(num_workers)
    under_way: dict[int, np.ndarray] = {}

    def numbered() -> Iterator[tuple[int, np.ndarray]]:
        for number, rows in enumerate(row_batches):
            under_way[number] = np.asarray(rows, dtype=np.int64)
            yield number, under_way[number]

    at_work = torch.full((num_workers, 2), -1).share_memory_()
    loader = DataLoader(
        _Batches(source, columns or {}, at_work),
        sampler=numbered(),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if num_workers else None,
        worker_init_fn=partial(_begin_work, at_work=at_work),
        generator=torch.Generator(),  # a loader draws a seed when it starts: not from the stream that a resume restores
    )
    batches = _started(loader)
    for number in count():
        try:
            batch = next(batches, None)
        except Exception as error:
            if isinstance(error, EOFError | OSError):  # of a connection to a worker, reported dead only later
                time.sleep(1)
            alive = {process.pid for process in multiprocessing.active_children()}
            killed = [began for process, began in at_work.tolist() if process not in (-1, *alive)]
            if not killed and not str(error).startswith("DataLoader worker"):
                raise
            rows = under_way[next((began for began in killed if began in under_way), min(under_way))]
            raise WorkersError(
                f"a process that reads images was killed, by the system for want of memory or from outside, at "
                f"{_images(source, rows)}: see whether these are damaged, or lower num_workers"
            ) from error
        if batch is None:
            return
        if isinstance(batch, UserError | OSError):
            raise batch
        del under_way[number]
        yield batch


def _require_startable(num_workers: int) -> None:
    """`UserError` for a number of processes that may take the machine down before the system refuses one."""
    cores = os.cpu_count() or 1
    most = max(MOST_WORKERS, WORKERS_A_CORE * cores)
    if num_workers > most:
        raise WorkersError(
            f"num_workers is {num_workers}: so many processes that read images would exhaust this machine of {cores} "
            f"cores; set at most {most}"
        )


def _started(loader: DataLoader) -> Iterator[Any]:
    """The loader with its workers started; `UserError` if the system refuses them.

    PyTorch would raise the death of a worker in the middle of whatever the main process does. Left to itself it is
    noticed where a batch is waited for, within some seconds.
    """
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    except (OSError, RuntimeError, MemoryError) as error:
        raise WorkersError(
            f"num_workers is {loader.num_workers}, and the system does not start so many processes that read images "
            f"({error}): set a smaller number, or raise the limits of processes, files and memory (ulimit -a)"
        ) from error
    finally:
        if is_main and handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _images(source: ImageReader, rows: np.ndarray) -> str:
    """The images of a batch in words; of one in another order than the source's their rows, counted from 0."""
    first, last = (source.image_name(int(row)) for row in (rows[0], rows[-1]))
    if len(rows) == 1:
        return first
    if (np.diff(rows) == 1).all():
        return f"a batch of {len(rows)} images, {first} to {last}"
    listed = " ".join(map(str, rows[:MOST_LISTED].tolist())) + (" and others" if len(rows) > MOST_LISTED else "")
    return f"a batch of {len(rows)} images, {first} and others, rows {listed} (from 0)"


def _begin_work(worker: int, at_work: Tensor) -> None:
    """Note which process the worker is, and keep OpenCV's own threads from competing with the other workers.

    PyTorch's workers end when their parent is another process than when they looked first, which is after this. One
    that starts slowly, while the main process ends at once with an error, would wait for its orders for ever, and with
    it whoever reads the program's output.
    """
    at_work[worker, 0] = os.getpid()
    cv2.setNumThreads(0)
    parent = multiprocessing.parent_process()
    if multiprocessing.get_start_method() == "fork" and parent is not None and os.getppid() != parent.pid:
        os._exit(1)
