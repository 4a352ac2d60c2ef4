"""Tiny data and settings that several rooms' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import write_records

from core.parallel import threads
from core.parallel.ranks import Ranks, process_group


@pytest.fixture(scope="session")
def tiny_records(tmp_path_factory) -> Path:
    """Prefix of records with 72 images of 6 classes, 16x16."""
    return write_records(tmp_path_factory.mktemp("records") / "train", sorted(list(range(6)) * 12))


@pytest.fixture(scope="session")
def tiny_settings() -> list[str]:
    """Overrides that make a training of seconds: a narrow one-block IResNet, two epochs of four steps."""
    return [
        "network=r18", "network_options.width=8", "network_options.depth=1", "embedding_size=8", "batch_size=16",
        "num_epoch=2", "lr=0.02", "num_workers=0", "device=cpu", "precision=fp32", "frequent=2", "margin_scale=16",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    """As many as before, also after a test that changes what PyTorch says of their number.

    A child that a later test forks would wait for threads that stayed in the parent.
    """
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads, and threads that wait for each other on a busy machine take minutes."""
    with threads.one_thread():
        yield


@pytest.fixture
def ranks(one_thread: None) -> Iterator[Ranks]:
    """A process group of this process alone, on the CPU, with one thread."""
    with process_group("cpu") as alone:
        yield alone
