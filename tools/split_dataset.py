"""Split training records, or an image list, into an old and a new side, by classes or by images of each class.

    python tools/split_dataset.py --rec datasets/glyphs/train --mode class --ratio 0.3
    python tools/split_dataset.py --rec datasets/gldv2/train_clean.txt --mode class --ratio 0.3

The first writes datasets/glyphs/train_part_30_class.rec/.idx, of the first classes, and train_part_70_class.rec/.idx.
The second shuffles the classes by the seed and writes train_clean_part_30_class.txt, train_clean_part_70_class.txt, and
train_clean_part_100_class.txt: the whole list with the classes of the 30 % numbered first, as the 30 % numbers them.

--rule released splits as the released code does: records as MixBCT's (class: 0.3 C rounded; data: the first images of
each class), lists as AdvBCT's (its own shuffles; its files if the list is its label_81313.txt). The order and the
class numbers of another list make other parts of it.
"""

import logging
from pathlib import Path

from command_line import ArgumentParser

from core.data.open_dataset import is_list
from core.data.split import RULES, split_list, split_records
from core.errors import run_program
from core.logs import set_up_logging

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, split, and log what each side got."""
    parser = ArgumentParser("Split a record file or an image list into the old and the new side's share.")
    parser.add_argument("--rec", required=True, help="records (prefix, .rec file or its folder), or an image list")
    parser.add_argument(
        "--mode", choices=("class", "data"), required=True, help="share out classes, or the images of each class"
    )
    parser.add_argument("--ratio", type=float, default=0.3, help="share of the old side")
    parser.add_argument("--seed", type=int, default=0, help="for the choice of images, and of a list's classes")
    parser.add_argument("--rule", choices=RULES, default=RULES[0], help="which images go to which side")
    parser.add_argument("--out", type=Path, help="folder of the parts; None: that of the data")
    args = parser.parse_args()
    set_up_logging()
    split = split_list if is_list(args.rec) else split_records
    written = split(args.rec, args.mode, args.ratio, args.seed, rule=args.rule, out=args.out)
    for output, (num_images, num_classes) in written.items():
        logger.info("%s: %d images of %d classes", output, num_images, num_classes)


if __name__ == "__main__":
    run_program(main)
