"""Make the index of a record file again: the .idx from the .rec alone.

    python tools/index_records.py datasets/ms1m-retinaface-t1/train.rec

Writes train.idx beside the file, with the keys that InsightFace's tools and im2rec give. One that is there is replaced.
"""

from command_line import ArgumentParser

from core.data.record_files import record_prefix
from core.data.record_index import write_index
from core.errors import run_program
from core.logs import set_up_logging


def main() -> None:
    """Parse the command line and write the index."""
    parser = ArgumentParser("Make the .idx of a .rec file again, from that file alone.")
    parser.add_argument("rec", help="the .rec file, its name without .rec, or its folder")
    args = parser.parse_args()
    set_up_logging()
    write_index(record_prefix(args.rec))


if __name__ == "__main__":
    run_program(main)
