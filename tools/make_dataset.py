"""Make a training set and an evaluation set of other identities, from built-in data or from a folder of images.

    python tools/make_dataset.py glyphs --out datasets/glyphs
    python tools/make_dataset.py orl --out datasets/orl
    python tools/make_dataset.py folder --src my_people --out datasets/my_people

Writes OUT/train.rec and .idx, OUT/eval/IJBC, for glyphs OUT/eval/roxford5k, and OUT/dataset.json. The same seed
gives the same bytes.
"""

import logging
from pathlib import Path

from command_line import ArgumentParser

from core.builtin.dataset_folder import check_replaceable, write_dataset_folder
from core.builtin.glyphs import glyph_source
from core.builtin.image_folder import folder_source
from core.builtin.orl import orl_source
from core.errors import UserError, run_program
from core.logs import set_up_logging

logger = logging.getLogger(__name__)
IMAGE_SIZES = {"glyphs": 32, "orl": 48, "folder": 112}


def main() -> None:
    """Parse the command line, write the data set and log what it holds."""
    parser = ArgumentParser("Make a training set and, of other identities, an evaluation set in IJB-C's layout.")
    parser.add_argument("kind", choices=IMAGE_SIZES, help="characters in fonts, ORL's faces, or a folder of images")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a data set made before is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of test identities and of the corruption")
    parser.add_argument("--image-size", type=int, help=f"side of the training images in pixels; None: {IMAGE_SIZES}")
    parser.add_argument("--src", type=Path, help="folder: the images, one sub-folder an identity")
    parser.add_argument("--identities", type=int, help="glyphs: how many characters, training and test; None: all")
    args = parser.parse_args()
    set_up_logging()

    size = args.image_size or IMAGE_SIZES[args.kind]
    if not 16 <= size <= 1024:
        raise UserError(f"--image-size {size} is not between 16 and 1024 pixels")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed} is negative; give a whole number from 0 on")
    if (args.src is not None) != (args.kind == "folder"):
        raise UserError("--src names the image folder of the kind folder: give it with that kind, and with no other")
    if args.identities is not None and args.kind != "glyphs":
        raise UserError("--identities is for the kind glyphs alone")
    check_replaceable(args.out, args.kind)

    if args.kind == "glyphs":
        source = glyph_source(args.seed, size, args.identities)
    elif args.kind == "orl":
        source = orl_source(args.seed, size)
    else:
        source = folder_source(args.src, args.seed, size)
    made = write_dataset_folder(args.out, source, args.seed)
    logger.info("Training: %(images)d images of %(classes)d identities", made["train"])
    logger.info(
        "Evaluation: %(images)d images of %(subjects)d other identities, %(templates)d templates, %(pairs)d pairs",
        made["eval/IJBC"],
    )
    if "eval/roxford5k" in made:
        logger.info("Retrieval: %(queries)d queries, a database of %(database)d images", made["eval/roxford5k"])
    logger.info("Images: %s. Credit: %s", made["source"], made["credit"])
    logger.info("Written to %s", args.out)


if __name__ == "__main__":
    run_program(main)
