"""Write the images of a record file as files again, one sub-folder a class, with an image list to train from.

    python tools/export_images.py --rec datasets/glyphs/train --out datasets/glyphs_images

writes datasets/glyphs_images/000012/000345.jpg (row 345 of the records, of class 12) and so on, the bytes as they are
stored, and datasets/glyphs_images/images.txt: as `rec` of a training it gives the same images and labels in the same
order. An export that was stopped goes on where it was when it is started again.
"""

import logging
from pathlib import Path

from command_line import ArgumentParser

from core.data.image_export import export_images
from core.data.open_dataset import is_list, open_dataset
from core.data.records import RecordDataset
from core.errors import UserError, run_program
from core.logs import set_up_logging
from core.outputs import require_writable

logger = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line, export, and log what was written."""
    parser = ArgumentParser("Write the images of a record file as files, one sub-folder a class, with an image list.")
    parser.add_argument("--rec", required=True, help="records: prefix, .rec file or its folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the images; made if it is not there")
    args = parser.parse_args()
    set_up_logging()
    require_writable(args.out)
    data = open_dataset(args.rec)
    if not isinstance(data, RecordDataset):
        are = (
            "is an image list, whose images are files already"
            if is_list(args.rec)
            else "are shards: unpack them by tar -x"
        )
        raise UserError(f"--rec {args.rec} {are}; name records")
    images = export_images(data, args.out)
    logger.info("%s: %d images of %d classes", images, data.num_images, data.num_classes)


if __name__ == "__main__":
    run_program(main)
