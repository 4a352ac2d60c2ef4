"""Make the index of WebDataset shards, by which they are trained on: rec=FOLDER.

    python tools/index_shards.py datasets/faces_wds
    python tools/index_shards.py datasets/wds/train-*.tar --out datasets/wds/train.npz

Writes shards.npz into the folder of the shards. One that is there is replaced.
"""

import os
from pathlib import Path

from command_line import ArgumentParser

from core.data.shard_index import INDEX_NAME, find_shards, write_shard_index
from core.errors import UserError, run_program
from core.logs import set_up_logging


def main() -> None:
    """Parse the command line and write the index."""
    parser = ArgumentParser("Make the index of WebDataset shards (.tar), which training reads them by.")
    parser.add_argument("shards", nargs="+", help="folder of the .tar files, or the files in the order of their rows")
    parser.add_argument("--out", type=Path, help=f"the index, an .npz file; None: {INDEX_NAME} beside the first shard")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count(), help="processes that read shards")
    args = parser.parse_args()
    if args.num_workers < 1 or (args.out is not None and args.out.suffix != ".npz"):
        raise UserError("--num-workers must be 1 or more, and the name of --out end in .npz")
    set_up_logging()
    shards = find_shards(args.shards)
    write_shard_index(shards, args.out or shards[0].parent / INDEX_NAME, args.num_workers)


if __name__ == "__main__":
    run_program(main)
