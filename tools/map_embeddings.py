"""Map stored embeddings into the space of another model.

    python tools/map_embeddings.py work_dirs/old_to_new --in gallery.npy --out mapped.npy

The first argument is a map's run folder. The input is a .npy file of vectors (N, D), one a row, in the space that the
map leads from; the output has a vector of the other space for each. Both are streamed, so they may exceed memory.
"""

import logging
import os
from pathlib import Path

import numpy as np
from command_line import ArgumentParser

from core.arrays import open_vector_array
from core.errors import UserError, run_program
from core.logs import set_up_logging
from core.models.maps import Map, load_map
from core.outputs import replaced_atomically
from core.progress import Progress
from core.room import require_room, reserve

logger = logging.getLogger(__name__)
BLOCK = 1 << 16


def main() -> None:
    """Parse the command line, map, and say what was written."""
    parser = ArgumentParser("Map stored embeddings into the space of another model.")
    parser.add_argument("map", metavar="MAP", help="run folder of a map")
    parser.add_argument("--in", dest="source", type=Path, required=True, metavar="FILE.npy", help="vectors (N, D)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="file to write, float32 (N, D)")
    parser.add_argument(
        "--plain", action="store_true", help="keep the lengths that the map gives; else all vectors have length 1"
    )
    args = parser.parse_args()
    set_up_logging()
    mapping, vectors = load_map(args.map), open_vector_array(args.source)
    write_mapped(mapping, vectors, args.out, args.plain)
    logger.info("%s: %d vectors of %s, from %s", args.out, len(vectors), mapping.target, mapping.source)


def write_mapped(mapping: Map, vectors: np.ndarray, path: Path, plain: bool) -> None:
    """Write what `vectors` (N, D_s) become; the file appears when it is complete. Memory: a block of 65,536 rows."""
    require_room(path, 4 * len(vectors) * mapping.target.size)
    with replaced_atomically(path) as temporary, Progress("mapping", len(vectors)) as progress:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(vectors), mapping.target.size))
        reserve(temporary, os.path.getsize(temporary))
        for start in range(0, len(vectors), BLOCK):
            rows = slice(start, min(start + BLOCK, len(vectors)))
            try:
                mapping(vectors[rows], normalized=not plain, out=out[rows])
            except UserError as error:
                raise UserError(f"counted from row {start} of the file: {error}" if start else str(error)) from error
            progress.update(rows.stop - rows.start)
        out.flush()


if __name__ == "__main__":
    run_program(main)
