"""The files of a live gallery from the 1:N test of an IJB tree: entries, the owner's sample, and queries.

The entries are the enrolled images of all galleries of the test. Every second identity is the owner's: all its images
are the sample on which an upgrade is planned. The probes of the others are the queries, so that nothing that a plan
fits has seen them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from core.evaluation.ijb_embeddings import AlignedImages
from core.evaluation.ijb_meta import IjbImages, read_identification
from core.outputs import replaced_atomically, require_writable, writing

__all__ = ["IjbGallery", "write_ijb_gallery"]

BLOCK = 512


@dataclass(frozen=True)
class IjbGallery:
    """Rows of the tree's images, and their subjects by row; a gallery's files name them by path."""

    entries: np.ndarray
    """(E,) rows of the enrolled images."""
    sample: np.ndarray
    """(S,)"""
    queries: np.ndarray
    """(Q,)"""
    subjects: np.ndarray
    """(N,) of all images of the tree, -1 for one of no template of the test."""
    names: list[str]
    """(N,) the ids of the images in the gallery."""

    @property
    def enrolled(self) -> np.ndarray:
        """Whether the person of each query is in the gallery, bool (Q,)."""
        return np.isin(self.subjects[self.queries], self.subjects[self.entries])

    def rank_1(self, queries: np.ndarray, ids: Sequence[str]) -> float:
        """The share of queries of enrolled people whose first hit is of their person.

        `queries` (H,) numbers of queries, from 0, and `ids` (H,) of their first hits; a query without one is not found.
        """
        subject_of = dict(zip(self.names, self.subjects.tolist()))
        found = np.full(len(self.queries), -2)
        found[queries] = [subject_of[name] for name in ids]
        return float((found == self.subjects[self.queries])[self.enrolled].mean())


def write_ijb_gallery(images: IjbImages, image_size: int, out: Path) -> IjbGallery:
    """Write the images as crops of `image_size` pixels, and lists of them.

    Below `out`: `images/<name>.png`; `entries.txt` and `sample.txt`, a line an image: the entries' path and id, and the
    sample's path and identity; `ids.txt` and `labels.txt`, the entries' ids and identities in the same order.
    """
    require_writable(out)
    lists = read_identification(images)
    groups = [*lists.galleries.values(), lists.probes]
    subject_of_template = np.full(images.num_templates, -1)
    for group in groups:
        subject_of_template[group.templates] = group.subjects
    subjects = np.full(len(images.names), -1)
    subjects[images.member_image] = subject_of_template[images.member_template]

    enrolled = np.concatenate([gallery.templates for gallery in lists.galleries.values()])
    entries = _images_of(images, enrolled)
    owned = np.isin(subjects, np.unique(subjects[subjects >= 0])[::2])
    probes = _images_of(images, lists.probes.templates)
    gallery = IjbGallery(
        entries=entries,
        sample=np.flatnonzero(owned),
        queries=probes[~owned[probes]],
        subjects=subjects,
        names=[Path(name).stem for name in images.names],
    )
    _write_crops(images, image_size, np.flatnonzero(subjects >= 0), out / "images", gallery.names)
    paths = [out / "images" / f"{name}.png" for name in gallery.names]
    _write_lines(out / "entries.txt", [f"{paths[row]} {gallery.names[row]}" for row in gallery.entries])
    _write_lines(out / "ids.txt", [gallery.names[row] for row in gallery.entries])
    _write_lines(out / "labels.txt", [str(subjects[row]) for row in gallery.entries])
    _write_lines(out / "sample.txt", [f"{paths[row]} {subjects[row]}" for row in gallery.sample])
    return gallery


def _images_of(images: IjbImages, templates: np.ndarray) -> np.ndarray:
    """Rows of the images of some templates, each once, ascending."""
    return np.unique(images.member_image[np.isin(images.member_template, templates)])


def _write_crops(images: IjbImages, image_size: int, rows: np.ndarray, folder: Path, names: list[str]) -> None:
    source = AlignedImages(images, image_size)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        for row, crop in zip(block.tolist(), source.read(block)["image"]):
            encoded = cv2.imencode(".png", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))[1]
            with writing(folder):
                (folder / f"{names[row]}.png").write_bytes(encoded.tobytes())


def _write_lines(path: Path, lines: list[str]) -> None:
    with replaced_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
