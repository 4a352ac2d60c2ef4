"""Split training records into an old and a new side, by identities or by images of each identity.

    python tools/split_dataset.py --rec datasets/glyphs/train --mode class --ratio 0.3

Writes datasets/glyphs/train_part_30_class.rec/.idx and datasets/glyphs/train_part_70_class.rec/.idx.
"""

import logging

from core.data.split import split_records
from core.errors import ArgumentParser, run_program
from core.logs import set_up_logging

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, split, and log what each side got."""
    parser = ArgumentParser("Split a record file into the old and the new side's share.")
    parser.add_argument("--rec", required=True, help="prefix of the .rec and .idx files")
    parser.add_argument(
        "--mode", choices=("class", "data"), required=True, help="share out identities, or the images of each identity"
    )
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the old side")
    parser.add_argument("--seed", type=int, default=0, help="for the choice of images; not used by class")
    args = parser.parse_args()
    set_up_logging()
    for prefix, (num_images, num_classes) in split_records(args.rec, args.mode, args.ratio, args.seed).items():
        logger.info("%s.rec: %d images of %d classes", prefix, num_images, num_classes)


if __name__ == "__main__":
    run_program(main)
