"""An evaluation set in the layout of IJB-C as InsightFace distributes it, made from any images with subjects.

`loose_crop/N.jpg`, and under `meta/` the image list with template and media, the landmarks with detector scores, the
1:1 pairs, two galleries of different subjects, and the probes, some of which are in neither gallery.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars

from core.progress import track

__all__ = ["Sample", "SubjectImages", "frames_to_media", "template_of_media", "write_ijb_tree"]

IN_A_GALLERY = 0.8
NO_TEMPLATE = -1


@dataclass
class Sample:
    """One loose crop: JPEG bytes, five landmarks (5, 2) in its pixels, detector score in [0, 1]."""

    jpeg: bytes
    landmarks: np.ndarray
    score: float


@dataclass
class SubjectImages:
    """The images of an evaluation set. `subjects` (N,), 0 to S - 1, and `media` (N,), unique over all subjects, are
    integers, in the order in which `samples` yields the N images; images of a subject and of a media are consecutive.
    """

    subjects: np.ndarray
    media: np.ndarray
    samples: Iterable[Sample]


def frames_to_media(counts: np.ndarray) -> np.ndarray:
    """Group each subject's images into media of 1, 2, 1, 2, ... frames: media numbers (counts.sum(),) over all."""
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    within = place // 3 * 2 + (place % 3 > 0)
    starts = (place == 0) | (np.diff(within, prepend=-1) != 0)
    return np.cumsum(starts) - 1


def template_of_media(subjects: np.ndarray, in_gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign media (M,), sorted by subject, to templates: template numbers (M,), and whether each is a gallery's.

    The first half of the media of a subject in a gallery, at least one, form the gallery template: subjects are
    enrolled with good images. Every other media is a probe template of its own, as a query comes from one capture.
    """
    first, counts = np.unique(subjects, return_index=True, return_counts=True)[1:]
    place = np.arange(len(subjects)) - np.repeat(first, counts)
    for_gallery = np.where(in_gallery[subjects[first]], np.maximum(counts // 2, 1), 0)
    is_gallery = place < np.repeat(for_gallery, counts)
    starts = (place == 0) | ~is_gallery
    return np.cumsum(starts) - 1, is_gallery


def write_ijb_tree(folder: Path, images: SubjectImages, seed: int, num_pairs: int) -> dict[str, int]:
    """Write `folder`/loose_crop and `folder`/meta; returns the counts of what was written.

    Four fifths of the subjects with at least two media are divided between the two galleries, the rest are probes only.
    Pairs are (gallery template, probe template), as in IJB-C: all genuine ones and random others, about `num_pairs`.
    Deterministic in `seed`. Only the metadata is held in memory; the images are written one by one.
    """
    rng = np.random.default_rng(seed)
    for name in ("loose_crop", "meta"):
        (folder / name).mkdir(parents=True)
    landmarks = np.empty((len(images.subjects), 11))
    for i, sample in enumerate(track(images.samples, "Evaluation images", len(landmarks), "images")):
        (folder / "loose_crop" / f"{i + 1}.jpg").write_bytes(sample.jpeg)
        landmarks[i, :10], landmarks[i, 10] = np.ravel(sample.landmarks), sample.score

    media, first_image, media_of_image = np.unique(images.media, return_index=True, return_inverse=True)
    subject_of_media = images.subjects[first_image]
    gallery_of_subject = _share_galleries(subject_of_media, rng)
    template_of, is_gallery = template_of_media(subject_of_media, gallery_of_subject > 0)
    first_media = np.unique(template_of, return_index=True)[1]
    subject = subject_of_media[first_media]
    gallery = np.where(is_gallery[first_media], gallery_of_subject[subject], 0)
    pairs = _draw_pairs(subject, gallery > 0, num_pairs, rng)

    template_of_image = template_of[media_of_image]
    meta = folder / "meta"
    names = [f"{i + 1}.jpg" for i in range(len(landmarks))]
    tid_mid = {"image": names, "template": template_of_image + 1, "media": media_of_image + 1}
    _write_table(meta / "ijbc_face_tid_mid.txt", tid_mid)
    _write_table(meta / "ijbc_name_5pts_score.txt", {"image": names} | {str(k): landmarks[:, k] for k in range(11)})
    _write_table(
        meta / "ijbc_template_pair_label.txt",
        {"first": pairs[0] + 1, "second": pairs[1] + 1, "label": (subject[pairs[0]] == subject[pairs[1]]).astype(int)},
    )
    for number, name in ((1, "gallery_G1"), (2, "gallery_G2"), (0, "probe_mixed")):
        rows = np.flatnonzero(gallery[template_of_image] == number)
        columns = {
            "TEMPLATE_ID": template_of_image[rows] + 1,
            "SUBJECT_ID": images.subjects[rows] + 1,
            "FILENAME": [names[i] for i in rows],
        }
        _write_table(meta / f"ijbc_1N_{name}.csv", columns, separator=",", header=True)
    return {
        "images": len(landmarks),
        "media": len(media),
        "templates": len(subject),
        "subjects": len(np.unique(subject)),
        "subjects_in_g1": int((gallery == 1).sum()),
        "subjects_in_g2": int((gallery == 2).sum()),
        "probe_templates": int((gallery == 0).sum()),
        "pairs": len(pairs[0]),
        "genuine_pairs": int((subject[pairs[0]] == subject[pairs[1]]).sum()),
    }


def _share_galleries(subject_of_media: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The gallery of each subject (S,), 1 or 2, or 0 for none: only subjects with two media or more have one."""
    counts = np.bincount(subject_of_media)
    eligible = rng.permutation(np.flatnonzero(counts >= 2))
    chosen = eligible[: max(2, round(IN_A_GALLERY * len(eligible)))]
    gallery = np.zeros(len(counts), np.int64)
    gallery[chosen] = 1 + np.arange(len(chosen)) % 2
    return gallery


def _draw_pairs(
    subject: np.ndarray, is_gallery: np.ndarray, num_pairs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gallery and probe templates of the pairs, sorted: all genuine ones, then random others without repetition."""
    galleries, probes = np.flatnonzero(is_gallery), np.flatnonzero(~is_gallery)
    gallery_of_subject = np.full(subject.max() + 1, NO_TEMPLATE)
    gallery_of_subject[subject[galleries]] = np.arange(len(galleries))
    mate = gallery_of_subject[subject[probes]]
    genuine = (mate * len(probes) + np.arange(len(probes)))[mate != NO_TEMPLATE]
    possible = len(galleries) * len(probes)
    drawn = rng.choice(possible, min(max(0, num_pairs - len(genuine)), possible), replace=False)
    codes = np.union1d(genuine, drawn)
    return galleries[codes // len(probes)], probes[codes % len(probes)]


def _write_table(
    path: Path, columns: Mapping[str, Sequence[str] | np.ndarray], separator: str = " ", header: bool = False
) -> None:
    polars.DataFrame(columns).write_csv(path, separator=separator, include_header=header, float_precision=3)
