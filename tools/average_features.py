"""Class means of a feature store: the mean of each class's L2-normalised features.

python tools/average_features.py features/glyphs_old_train_part_70_class_1f0c2a3b_9d8e7f60
"""

import numpy as np
from command_line import ArgumentParser

from core.embeddings.statistics import class_means
from core.embeddings.store import FeatureStore
from core.errors import run_program
from core.files import replaced_atomically


def main() -> None:
    """Write `class_means.npy` (float32 (C, D), not normalised again) and `class_counts.npy` (int64 (C,))."""
    parser = ArgumentParser("Write class_means.npy (C, D) and class_counts.npy (C,) beside a store's features.")
    parser.add_argument("store", help="folder of the feature store")
    args = parser.parse_args()
    store = FeatureStore.open(args.store)
    means, counts = class_means(store)
    for name, array in (("class_means", means.astype(np.float32)), ("class_counts", counts)):
        with replaced_atomically(store.path / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    print(f"{store.path / 'class_means.npy'}: {means.shape[0]} x {means.shape[1]}")


if __name__ == "__main__":
    run_program(main)
