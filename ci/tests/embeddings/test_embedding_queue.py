"""The queue against a plain list of the last rows, on one and on two ranks."""

import sys
from pathlib import Path

import torch
from launching import Launch

from core.embeddings.queue import EmbeddingQueue
from core.parallel.ranks import process_group

SIZE, D = 7, 3


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of all ranks together."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, D, generator=generator), torch.randint(5, (4,), generator=generator)


def filled(num_steps: int, rank: int = 0, num_ranks: int = 1) -> EmbeddingQueue:
    queue = EmbeddingQueue(SIZE, D)
    for step in range(num_steps):
        queue.push(*(tensor.chunk(num_ranks)[rank] for tensor in batch(step)))
    return queue


def entries(queue: EmbeddingQueue) -> list:
    """(label, embedding) of the filled slots, sorted."""
    return sorted((label, *row) for label, row in zip(queue.label.tolist(), queue.embedding.tolist()) if label >= 0)


def test_queue_holds_the_last_rows_however_often_it_has_wrapped():
    rows = []
    for num_steps in range(9):
        assert entries(filled(num_steps)) == sorted(rows[-SIZE:])
        embeddings, labels = batch(num_steps)
        rows += [(label, *row) for label, row in zip(labels.tolist(), embeddings.tolist())]


def test_empty_slots_have_label_minus_1():
    assert filled(0).label.tolist() == [-1] * SIZE
    assert (filled(1).label[4:] == -1).all()


def test_batch_as_large_as_the_queue_replaces_it():
    queue = filled(2)
    queue.push(torch.arange(SIZE * D).view(SIZE, D).float(), torch.arange(SIZE))
    assert [entry[0] for entry in entries(queue)] == list(range(SIZE))


def test_no_gradient_is_kept():
    queue = EmbeddingQueue(SIZE, D)
    queue.push(torch.randn(2, D, requires_grad=True), torch.tensor([1, 2]))
    assert not queue.embedding.requires_grad


def test_state_goes_on_where_it_was_saved():
    whole, other = filled(5), EmbeddingQueue(SIZE, D)
    other.load_state_dict(filled(3).state_dict())
    for step in (3, 4):
        other.push(*batch(step))
    assert all(torch.equal(*pair) for pair in zip(whole.state_dict().values(), other.state_dict().values()))


def test_two_ranks_hold_what_one_holds(tmp_path):
    statuses, outputs = Launch(Path(__file__), [tmp_path], tmp_path / "logs", ranks=2).wait()
    assert statuses == [0, 0], outputs
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"rank{rank}.pt"), filled(5).state_dict(), rtol=0, atol=0)


if __name__ == "__main__":
    with process_group("cpu") as ranks:
        torch.save(filled(5, ranks.rank, ranks.world_size).state_dict(), f"{sys.argv[1]}/rank{ranks.rank}.pt")
