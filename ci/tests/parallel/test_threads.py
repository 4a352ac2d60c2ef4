"""Work that is shared out to threads comes back in order, a little at a time."""

import threading
import time

import pytest

from core.parallel.threads import in_order


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items_whichever_ends_first(threads):
    def work(item):
        time.sleep(0.002 * (item % 3 == 0))
        return item * item

    assert list(in_order(work, range(40), threads)) == [item * item for item in range(40)]
    assert list(in_order(work, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_no_more_than_two_results_a_thread_are_there_at_once(threads):
    began = []
    for number, _ in enumerate(in_order(began.append, range(50), threads)):
        assert len(began) <= number + 2 * threads + 1
    assert sorted(began) == list(range(50))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_all_threads_work_at_once(threads):
    together = threading.Barrier(threads, timeout=20)
    assert len(list(in_order(lambda item: together.wait(), range(3 * threads), threads))) == 3 * threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_an_error_is_raised_in_its_place(threads):
    def work(item):
        return 1 // (item - 3)

    results = in_order(work, range(9), threads)
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)
