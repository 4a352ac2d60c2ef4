"""A live gallery's files from an IJB tree, against the tree's own lists."""

import cv2
import numpy as np

from core.builtin.ijb_gallery import write_ijb_gallery
from core.builtin.ijb_tree import Sample, SubjectImages, frames_to_media, write_ijb_tree
from core.evaluation.ijb_meta import read_images

COUNTS = [12, 3, 1, 2, 7, 9, 12, 1, 4, 5, 6, 2]
POINTS = np.array(
    [[10.9, 14.8], [18.7, 14.7], [14.9, 19.2], [11.9, 24.7], [18.2, 24.6]]
)  # as in a crop of 32 pixels


def _lists(meta):
    """Template of each image, and by list the subject of each of its templates, as the files say."""
    templates = [int(line.split()[1]) for line in (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    subjects = {}
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        rows = [line.split(",") for line in (meta / f"ijbc_1N_{name}.csv").read_text().splitlines()[1:]]
        subjects[name] = {int(template): int(subject) for template, subject, _ in rows}
    return templates, subjects


def test_entries_sample_and_queries_are_those_of_the_protocol(tmp_path):
    subjects = np.repeat(np.arange(len(COUNTS)), COUNTS)
    greys = 20 + 3 * np.arange(len(subjects))
    pictures = (cv2.imencode(".png", np.full((32, 32, 3), grey, np.uint8))[1].tobytes() for grey in greys)
    samples = (Sample(picture, POINTS, 0.9) for picture in pictures)
    write_ijb_tree(tmp_path / "IJBC", SubjectImages(subjects, frames_to_media(np.array(COUNTS)), samples), 0, 1000)
    templates, lists = _lists(tmp_path / "IJBC" / "meta")
    out = tmp_path / "gallery"
    out.mkdir()
    made = write_ijb_gallery(read_images(tmp_path / "IJBC", "IJBC"), 32, out)

    enrolled = {**lists["gallery_G1"], **lists["gallery_G2"]}
    entries = [row for row, template in enumerate(templates) if template in enrolled]
    assert made.entries.tolist() == entries
    assert (out / "ids.txt").read_text().split() == [str(row + 1) for row in entries]
    assert (out / "labels.txt").read_text().split() == [str(enrolled[templates[row]]) for row in entries]
    lines = [line.split() for line in (out / "entries.txt").read_text().splitlines()]
    assert lines == [[str(out / "images" / f"{row + 1}.png"), str(row + 1)] for row in entries]
    for path, _ in lines:
        assert cv2.imread(path)[16, 16].tolist() == [greys[int(path.split("/")[-1][:-4]) - 1]] * 3

    everyone = {**enrolled, **lists["probe_mixed"]}
    owners = set(sorted(set(everyone.values()))[::2])
    sample = [line.split() for line in (out / "sample.txt").read_text().splitlines()]
    assert {int(identity) for _, identity in sample} == owners
    assert sorted(made.sample.tolist()) == [row for row, t in enumerate(templates) if everyone[t] in owners]
    probes = [row for row, t in enumerate(templates) if t in lists["probe_mixed"] and everyone[t] not in owners]
    assert made.queries.tolist() == probes and probes
    assert made.subjects[made.queries].tolist() == [everyone[templates[row]] for row in probes]
