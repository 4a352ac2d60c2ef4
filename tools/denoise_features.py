"""MixBCT's credible rows of an embedding store: in each class the fraction nearest to the class mean.

python tools/denoise_features.py features/glyphs_old_train_part_70_class_1f0c2a3b_9d8e7f60 --keep 0.9
"""

import numpy as np
from command_line import ArgumentParser

from core.embeddings.credible_rows import credible_mask, credible_mask_path
from core.embeddings.statistics import load_statistic, write_once
from core.embeddings.store import EmbeddingStore
from core.errors import UserError, run_program


def main() -> None:
    """Write the mask `credible_<keep>.npy` (bool (N,)) to the store."""
    parser = ArgumentParser("Write the mask of credible rows in the store.")
    parser.add_argument("store", help="folder of the embedding store")
    parser.add_argument("--keep", type=float, default=0.9, help="fraction of each class that is credible (T)")
    parser.add_argument(
        "--scale-dimensions",
        action="store_true",
        help="first scale each dimension to unit norm, as the released tool does",
    )
    args = parser.parse_args()
    if not 0 < args.keep <= 1:
        raise UserError(f"--keep must be above 0 and at most 1, got {args.keep}")
    store = EmbeddingStore.open(args.store)
    path = credible_mask_path(store, args.keep, args.scale_dimensions)
    write_once(path, store.info.num_images, lambda: credible_mask(store, args.keep, args.scale_dimensions))
    mask = load_statistic(path, np.bool_, (store.info.num_images,))
    print(f"{path}: {int(mask.sum())} of {len(mask)} rows are credible")


if __name__ == "__main__":
    run_program(main)
