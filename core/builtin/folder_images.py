"""The images below a folder, one sub-folder an identity, and what else lies there."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError
from core.images.formats import START, format_of
from core.progress import track

__all__ = ["FoundImages", "find_images"]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".avif",
    ".jp2",
)  # fmt: skip
"""A file of such a name that holds no image is damaged: it is not left out in silence."""
CAMERA_RAW = (".dng", ".nef", ".nrw", ".arw", ".cr2", ".pef", ".srw")
"""In the clothes of TIFF, which show a thumbnail only."""
SYSTEM_NAMES = {
    "__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "found.000", "@eadir", "@tmp",
    "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""What desktops and network disks put into folders, beside names with a dot in front; in lower case."""


@dataclass
class FoundImages:
    """`identities`: files in the order of their paths, by the name of the sub-folder, in the order of these names.

    `left_out`: paths relative to the folder, by what they are. `nested` are the images that lie deeper than in the
    sub-folder itself; they belong to its identity.
    """

    identities: dict[str, list[Path]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    nested: list[str] = field(default_factory=list)


def find_images(folder: Path) -> FoundImages:
    """Look through `folder`. What a file holds decides whether it is an image that is read, not its name.

    Links are followed. Hidden and system folders are left out whole. `UserError` naming a folder or file that cannot be
    read, or a file that is named as an image but holds none.
    """
    found = FoundImages()
    folders, files = _visible(folder, folder, found)
    outside = _images(files, folder, found)
    if outside:
        found.left_out["images outside the folders of identities"] = [file.name for file in outside]
    for identity in track(folders, "Looking for images", len(folders), "folders"):
        images = _images_below(identity, folder, found)
        if images:
            found.identities[identity.name] = images
            found.nested += [str(file.relative_to(folder)) for file in images if file.parent != identity]
        else:
            found.left_out["folders without images"].append(identity.name)
    return found


def _images_below(identity: Path, root: Path, found: FoundImages) -> list[Path]:
    images, seen, waiting = [], {os.path.realpath(root)}, [identity]
    while waiting:
        folder = waiting.pop()
        place = os.path.realpath(folder)
        if place in seen:
            found.left_out["links to a folder that is looked through anyway"].append(str(folder.relative_to(root)))
            continue
        seen.add(place)
        folders, files = _visible(folder, root, found)
        waiting += folders
        images += _images(files, root, found)
    return sorted(images)


def _visible(folder: Path, root: Path, found: FoundImages) -> tuple[list[Path], list[Path]]:
    """Folders and files in `folder`, each in the order of the names, without hidden and system ones."""
    folders, files = [], []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}); give yourself the right to") from None
    for entry in entries:
        is_folder = entry.is_dir()
        if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
            what = "hidden or system folders" if is_folder else "hidden or system files"
            found.left_out[what].append(str(entry.relative_to(root)))
        elif is_folder:
            folders.append(entry)
        elif entry.is_file():
            files.append(entry)
        else:
            found.left_out["broken links and other things that are no files"].append(str(entry.relative_to(root)))
    return folders, files


def _images(files: Iterable[Path], root: Path, found: FoundImages) -> list[Path]:
    images = []
    for file in files:
        reason = _why_not(file)
        if reason is None:
            images.append(file)
        else:
            found.left_out[reason].append(str(file.relative_to(root)))
    return images


def _why_not(file: Path) -> str | None:
    """None for an image that is read; what the file is otherwise."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(START)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); give yourself the right to, or remove it") from None
    image_format, suffix = format_of(start), file.suffix.lower()
    if suffix in CAMERA_RAW and (image_format is None or image_format.name == "TIFF"):
        return "camera raw images, which are not read"
    if image_format is not None:
        return None if image_format.is_read else f"{image_format.name} images, which are not read"
    if suffix in IMAGE_SUFFIXES:
        what = "no image" if start else "empty"
        raise UserError(f"{file} is {what}, in spite of its name; repair or remove it")
    return "files that are no images"
