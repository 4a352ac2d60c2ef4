"""Threads of the libraries while maps are fitted and applied."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from core.models.maps import fit_map, linear
from core.models.maps.threads import SMALL_TABLE, in_shares, threads_for_tables


def blas_threads():
    """Of each BLAS that is loaded."""
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with threadpool_limits(2, user_api="blas"):
        yield
    torch.set_num_threads(before)


def test_small_tables_take_one_thread_and_large_ones_all(two_threads):
    with threads_for_tables(SMALL_TABLE):
        assert blas_threads() == {1}
    with threads_for_tables(SMALL_TABLE + 1):
        assert blas_threads() == {2}
    with pytest.raises(ZeroDivisionError), threads_for_tables(8):
        raise ZeroDivisionError
    assert blas_threads() == {2}


def test_shares_are_dealt_in_turn_to_threads_that_work_alone(two_threads, monkeypatch):
    monkeypatch.setattr("core.models.maps.vectors.BLOCK_ROWS", 4)
    seen = in_shares(10, lambda blocks: (blocks, blas_threads(), torch.get_num_threads()))
    assert seen == [([slice(0, 4), slice(8, 10)], {1}, 1), ([slice(4, 8)], {1}, 1)]
    assert blas_threads() == {2} and torch.get_num_threads() == 2


@pytest.mark.parametrize("kind", ["procrustes", "ridge", "low_rank"])
def test_decompositions_of_a_fit_take_one_thread(kind, two_threads, monkeypatch):
    seen = []
    for name in ("svd", "eigh"):
        step = getattr(linear, name)
        monkeypatch.setattr(
            linear, name, lambda *args, step=step, **how: seen.append(blas_threads()) or step(*args, **how)
        )
    source, target = np.random.default_rng(0).standard_normal((2, 60, 8))
    fit_map(kind, source, target)
    assert len(seen) >= 2, "the map's and that of the prediction of its error"
    assert seen == [{1}] * len(seen) and blas_threads() == {2}
