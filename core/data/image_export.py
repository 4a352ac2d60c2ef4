"""Records back to image files: a sub-folder for each class, the bytes as they are stored, and an image list."""

import json
import logging
import os
from pathlib import Path

from core.data.records import RecordDataset
from core.errors import UserError
from core.images.formats import START, format_of
from core.json_files import read_json
from core.outputs import make_folder, replaced_atomically
from core.progress import Progress
from core.room import require_room
from core.temporary_names import is_temporary

__all__ = ["LIST", "export_images"]

logger = logging.getLogger(__name__)
LIST, ORIGIN = "images.txt", "export.json"
UNKNOWN_SUFFIX = ".bin"


def export_images(data: RecordDataset, out: Path) -> Path:
    """Write the images of `data` to `out`/<class>/<row><suffix>, and the list of them, which is returned.

    Numbers have at least six digits: `000012/000345.jpg` is row 345, of class 12. The suffix is that of the format that
    the bytes have. The list, lines `path label` in the order of the records, appears when everything is written. An
    export that was stopped goes on where it was: files that have the right size already are not written again.
    `UserError` if `out` holds anything but an export of the same records.
    """
    _claim(out, data)
    unknown = 0
    with (
        replaced_atomically(out / LIST) as temporary,
        open(temporary, "w", encoding="ascii", newline="\n") as lines,
        Progress("Exporting images", data.num_images) as progress,
    ):
        for row, label in enumerate(data.labels().tolist()):
            payload = data.payload(row)
            image_format = format_of(payload[:START])
            suffix = image_format.suffix if image_format else UNKNOWN_SUFFIX
            unknown += image_format is None
            path = f"{label:06d}/{row:06d}{suffix}"
            _write_missing(out / path, payload)
            lines.write(f"{path} {label}\n")
            progress.update(1)
        os.sync()  # all images are on the disk before the list is; faster than one by one
    if unknown:
        logger.warning("%d images are of an unknown format; their suffix is %s", unknown, UNKNOWN_SUFFIX)
    without = data.num_classes - 1 - int(data.labels().max())
    if without:
        logger.warning(
            "the last %d classes have no images: the list has %d classes", without, data.num_classes - without
        )
    return out / LIST


def _claim(out: Path, data: RecordDataset) -> None:
    """Make the folder and note in it what is exported there; `UserError` if it holds anything else."""
    origin = {"records": data.fingerprint, "images": data.num_images, "classes": data.num_classes}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the images")
    make_folder(out)
    if not all(map(is_temporary, os.listdir(out))):
        try:
            found = read_json(out / ORIGIN, "description of an export")
        except UserError:
            found = None
        if found != origin:
            what = "other files" if found is None else "images of other records"
            raise UserError(f"{out} has {what} in it; give another folder, or empty this one")
        return
    require_room(out, os.path.getsize(f"{data.prefix}.rec"))
    with replaced_atomically(out / ORIGIN) as temporary:
        temporary.write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _write_missing(file: Path, content: bytes) -> None:
    try:
        if os.stat(file).st_size == len(content):
            return
    except FileNotFoundError:
        file.parent.mkdir(exist_ok=True)
    try:
        file.write_bytes(content)
    except OSError:
        file.unlink(missing_ok=True)  # it must not keep the disk full
        raise
