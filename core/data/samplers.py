"""Which images a rank reads, in which order."""

from collections.abc import Iterator

import numpy as np

from core.errors import UserError

__all__ = ["TrainSampler", "evaluation_rows"]


class TrainSampler:
    """Batches of row numbers for one rank, shuffled anew every epoch.

    The order of an epoch is one permutation of all rows, drawn from (seed, epoch) and so the same for any number of
    ranks; step t of an epoch takes the next `batch_size * world_size` rows, of which rank r has the r-th `batch_size`.
    Ranks never share a row within an epoch. The rows that do not fill a last whole step are left out of that epoch.
    """

    def __init__(self, num_images: int, batch_size: int, rank: int, world_size: int, seed: int):
        self.num_images, self.batch_size, self.rank, self.seed = num_images, batch_size, rank, seed
        self.images_per_step = batch_size * world_size
        self.steps_per_epoch = num_images // self.images_per_step
        if self.steps_per_epoch == 0:
            raise UserError(
                f"one step takes {self.images_per_step} images ({batch_size} a rank) but the data has only "
                f"{num_images}: set a smaller batch_size"
            )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[np.ndarray]:
        """The batches, int64 (batch_size,), of an epoch from `first_step` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
        for step in range(first_step, self.steps_per_epoch):
            start = step * self.images_per_step + self.rank * self.batch_size
            yield order[start : start + self.batch_size]


def evaluation_rows(num_rows: int, block_size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """A rank's blocks of consecutive rows. Over all ranks every row comes once: no padding, no repeats.

    Blocks are dealt to the ranks in turn; the last one may be short, and a rank may get none.
    """
    return [
        range(start, min(start + block_size, num_rows))
        for start in range(rank * block_size, num_rows, world_size * block_size)
    ]
