"""A live gallery: stored vectors by the model that made them, and the upgrade from one model to the next.

    python tools/gallery.py create G --vectors old.npy --ids ids.txt --model OLD --images images.txt
    python tools/gallery.py plan G --new NEW --sample people.txt --out plan
    python tools/gallery.py backfill G --plan plan --share 0.25
    python tools/gallery.py search G --queries queries.npy --model NEW -k 10 --max-far 1e-4 --out hits.parquet
    python tools/gallery.py commit G

A gallery is a folder, or with --store milvus --uri URI a collection of that name. A model argument is a run folder, a
.pt state dict, an .onnx file, or name:KEY for a model that is not at hand, whose vectors come as files. The exit status
is 0, 2 after an error, and 1 where plan --require is not met or verify finds faults. backfill and plan also run under
torchrun. docs/upgrade.md tells the whole story.
"""

import json
import logging
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from command_line import ArgumentParser, add_preprocessing_arguments, preprocessing

from core.errors import UserError, run_program
from core.gallery import Gallery
from core.gallery.backfill import BackfillOptions
from core.gallery.exports import FORMATS
from core.gallery.search import INDEXES
from core.gallery.store import BLOCK
from core.gallery.upgrade import ROADS
from core.logs import set_up_logging
from core.parallel.ranks import process_group

logger = logging.getLogger(__name__)
