"""Make the lists that training and evaluation on the Google Landmarks Dataset v2 read, from its csv files.

    python tools/prepare_gldv2.py --csv downloads/gldv2 --images datasets/gldv2 --out datasets/gldv2

Writes train_clean.txt (a line `path label` for each image), gldv2_index.txt, gldv2_queries.txt (a path a line) and
gldv2_ground_truth.json. The csv files are train_clean.csv, index.csv and retrieval_solution_v2.1.csv; the images lie
in train/, index/ and test/ below --images. Without train_clean.csv, train.txt is made of train.csv: GLDv2's own, which
is not cleaned, or Kaggle's. Where --out is another folder, training needs image_root=<images>.
"""

from pathlib import Path

from command_line import ArgumentParser

from core.builtin.gldv2_lists import PARTS, prepare_gldv2
from core.errors import run_program
from core.logs import set_up_logging
from core.outputs import require_writable


def main() -> None:
    """Parse the command line, check the files, write the lists."""
    parser = ArgumentParser("Make the lists of GLDv2 from its csv files, and check that the images are there.")
    parser.add_argument("--csv", type=Path, required=True, help="folder with the csv files")
    parser.add_argument("--images", type=Path, required=True, help="folder with train/, index/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the lists")
    parser.add_argument("--only", choices=PARTS, help="make the lists of one part")
    parser.add_argument("--missing", choices=("error", "skip"), default="error", help="what to do about missing files")
    args = parser.parse_args()
    set_up_logging()
    require_writable(args.out)
    prepare_gldv2(args.csv, args.images, args.out, (args.only,) if args.only else PARTS, args.missing == "skip")


if __name__ == "__main__":
    run_program(main)
