"""Class means of an embedding store: the mean of each class's L2-normalised embeddings.

python tools/average_features.py features/glyphs_old_train_part_70_class_1f0c2a3b_9d8e7f60
"""

import numpy as np
from command_line import ArgumentParser

from core.embeddings.statistics import class_means, means_size
from core.embeddings.store import EmbeddingStore
from core.errors import run_program
from core.outputs import replaced_atomically
from core.room import require_room


def main() -> None:
    """Write `class_means.npy`, float32 (C, D), not normalised again, to the store."""
    parser = ArgumentParser("Write class_means.npy (C, D) to the store.")
    parser.add_argument("store", help="folder of the embedding store")
    args = parser.parse_args()
    store = EmbeddingStore.open(args.store)
    path = store.path / "class_means.npy"
    require_room(path, means_size(store))
    means, _ = class_means(store)
    with replaced_atomically(path) as temporary, open(temporary, "wb") as file:
        np.save(file, means.astype(np.float32))
    print(f"{path}: {means.shape[0]} x {means.shape[1]}")


if __name__ == "__main__":
    run_program(main)
