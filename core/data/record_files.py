"""Which record files a name means: users type the prefix, one of the two files, or the folder that they lie in."""

import logging
from pathlib import Path

from core.errors import UserError

__all__ = ["record_prefix"]

logger = logging.getLogger(__name__)
SUFFIXES = (".rec", ".idx")
USUAL_NAME = "train"
"""Of the records in a folder in InsightFace's layout, which also holds `property`, `lfw.bin` and so on."""


def record_prefix(rec: str | Path) -> str:
    """The common prefix of the files PREFIX.rec and PREFIX.idx that `rec` names.

    `rec` is the prefix, one of the files, or their folder: then its train.rec, or its only record file. `UserError`
    naming the folder if it has no record file, or several and no train.rec. The files need not be there.
    """
    path = Path(rec)
    if any(Path(f"{path}{suffix}").is_file() for suffix in SUFFIXES):
        return str(path)
    if path.suffix in SUFFIXES:
        return str(path.with_suffix(""))
    if not path.is_dir():
        return str(path)
    found = sorted(file.stem for file in path.glob("*.rec") if file.is_file())
    if USUAL_NAME not in found and len(found) != 1:
        names = ", ".join(found[:5]) + (" and others" if len(found) > 5 else "")
        content = f"the records {names}" if found else "no record file (.rec)"
        raise UserError(
            f"{path} is a folder with {content}; name the prefix of a .rec and an .idx file, such as FOLDER/train, or "
            "an image list; tools/make_dataset.py folder makes records of a folder of images"
        )
    prefix = path / (USUAL_NAME if USUAL_NAME in found else found[0])
    logger.info("%s is a folder: its records %s.rec are read", path, prefix)
    return str(prefix)
