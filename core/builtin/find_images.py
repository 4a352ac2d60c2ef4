"""The images below a folder, one sub-folder an identity, and what else lies there."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from core.images.formats import START, format_of
from core.progress import track

__all__ = ["FoundImages", "find_images"]

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".avif",
    ".jp2",
)  # fmt: skip
"""A file of such a name that holds no image is damaged, and an error."""
CAMERA_RAW = (".dng", ".nef", ".nrw", ".arw", ".cr2", ".pef", ".srw")
"""By their first bytes these are TIFFs, of which only the thumbnail would be read."""
SYSTEM_NAMES = {
    "__macosx", "$recycle.bin", "recycler", "system volume information", "lost+found", "found.000", "@eadir", "@tmp",
    "@recycle", "@recently-snapshot", "@__thumb", "#recycle", "#snapshot", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""What desktops and network disks put into folders, beside names with a dot in front; in lower case."""

IMAGE, DAMAGED = "images", "damaged"


@dataclass
class FoundImages:
    """`identities`: files in the order of their paths, by the name of the sub-folder, in the order of these names.

    `left_out`: paths relative to the folder, by what they are. `nested` are the images that lie deeper than in the
    sub-folder itself; they belong to its identity. `damaged` are files that are named as images but hold none.
    """

    identities: dict[str, list[Path]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    nested: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def find_images(folder: Path) -> FoundImages:
    """Look through `folder`. What a file holds decides whether it is an image that is read, not its name.

    Links are followed. Hidden and system folders are left out whole.
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
    for entry in sorted(folder.iterdir()):
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
        what = _kind(file)
        if what == IMAGE:
            images.append(file)
        else:
            paths = found.damaged if what == DAMAGED else found.left_out[what]
            paths.append(str(file.relative_to(root)))
    return images


def _kind(file: Path) -> str:
    """`IMAGE` if it is one that is read, `DAMAGED` if only its name says so, what it is otherwise."""
    with open(file, "rb") as opened:
        image_format = format_of(opened.read(START))
    suffix = file.suffix.lower()
    if suffix in CAMERA_RAW and (image_format is None or image_format.name == "TIFF"):
        return "camera raw images, which are not read"
    if image_format is not None:
        return IMAGE if image_format.is_read else f"{image_format.name} images, which are not read"
    return DAMAGED if suffix in IMAGE_SUFFIXES else "files that are no images"
