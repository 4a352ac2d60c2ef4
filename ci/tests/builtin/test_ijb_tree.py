"""The evaluation tree's plan: media, templates, galleries, probes and pairs from any numbers of images."""

from pathlib import Path

import numpy as np
import pytest

from core.builtin.ijb_tree import Sample, SubjectImages, frames_to_media, template_of_media, write_ijb_tree

POINTS = np.arange(10.0).reshape(5, 2)


def write_tree(folder: Path, counts, seed=0, num_pairs=10_000):
    subjects = np.repeat(np.arange(len(counts)), counts)
    samples = (Sample(b"%d" % i, POINTS + i, 0.5) for i in range(len(subjects)))
    return write_ijb_tree(folder, SubjectImages(subjects, frames_to_media(np.array(counts)), samples), seed, num_pairs)


def read_lists(folder: Path):
    """Template, media and subject of each image, and templates with subjects of the galleries and the probes."""
    meta = folder / "meta"
    lines = [line.split() for line in (meta / "ijbc_face_tid_mid.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == [f"{i + 1}.jpg" for i in range(len(lines))]
    lists = {}
    for name in ("gallery_G1", "gallery_G2", "probe_mixed"):
        header, *rows = (meta / f"ijbc_1N_{name}.csv").read_text().splitlines()
        assert header == "TEMPLATE_ID,SUBJECT_ID,FILENAME"
        lists[name] = {(int(t), int(s)) for t, s, _ in (row.split(",") for row in rows)}
    pairs = np.loadtxt(meta / "ijbc_template_pair_label.txt", dtype=int, ndmin=2)
    return [int(line[1]) for line in lines], [int(line[2]) for line in lines], lists, pairs


def test_frames_are_grouped_by_one_and_two_within_each_subject():
    assert frames_to_media(np.array([5, 1, 2, 3])).tolist() == [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_media_are_shared_between_gallery_and_probe_templates():
    subjects = np.repeat(np.arange(4), [7, 2, 1, 4])
    templates, is_gallery = template_of_media(subjects, np.array([True, True, False, False]))
    assert templates.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert np.flatnonzero(is_gallery).tolist() == [0, 1, 2, 7]


def test_tree_is_consistent(tmp_path):
    counts = [12, 3, 1, 2, 7, 9, 12, 1, 4, 5, 6, 2]
    made = write_tree(tmp_path / "IJBC", counts)
    templates, media, lists, pairs = read_lists(tmp_path / "IJBC")
    assert len(templates) == sum(counts) == made["images"]
    assert len(list((tmp_path / "IJBC" / "loose_crop").iterdir())) == sum(counts)
    subject = np.repeat(np.arange(len(counts)), counts) + 1
    subject_of = dict(zip(templates, subject))
    assert all(subject_of[t] == s for t, s in zip(templates, subject))
    assert all(len({t for t, m in zip(templates, media) if m == one}) == 1 for one in set(media))
    galleries = [lists["gallery_G1"], lists["gallery_G2"]]
    subjects_of = [{s for _, s in entries} for entries in (*galleries, lists["probe_mixed"])]
    assert [len(g) for g in galleries] == [len(p) for p in subjects_of[:2]] == [4, 4]
    assert not subjects_of[0] & subjects_of[1]
    assert subjects_of[0] | subjects_of[1] < subjects_of[2]
    assert not {t for g in galleries for t, _ in g} & {t for t, _ in lists["probe_mixed"]}
    assert {t for entries in lists.values() for t, _ in entries} == set(templates)
    assert all(subject_of[t] == s for entries in lists.values() for t, s in entries)
    in_gallery = {t for g in galleries for t, _ in g}
    assert {*pairs[:, 0]} <= in_gallery and not {*pairs[:, 1]} & in_gallery
    assert all(label == (subject_of[a] == subject_of[b]) for a, b, label in pairs)
    genuine = sum(s in subjects_of[0] | subjects_of[1] for _, s in lists["probe_mixed"])
    assert pairs[:, 2].sum() == genuine == made["genuine_pairs"]
    assert len({tuple(p) for p in pairs[:, :2].tolist()}) == len(pairs)


def test_pairs_are_bounded_but_hold_every_genuine_one(tmp_path):
    made = write_tree(tmp_path / "IJBC", [12] * 30, num_pairs=500)
    assert made["genuine_pairs"] == 24 * 4 and 400 < made["pairs"] <= 500
    assert write_tree(tmp_path / "few", [12] * 30, num_pairs=5)["pairs"] == 24 * 4


def test_landmark_lines_have_ten_numbers_and_the_score(tmp_path):
    write_tree(tmp_path / "IJBC", [3, 3, 3])
    lines = (tmp_path / "IJBC" / "meta" / "ijbc_name_5pts_score.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [f"{i}.jpg" for i in range(1, 10)]
    values = np.array([line.split()[1:] for line in lines], dtype=float)
    assert values[4].tolist() == [*(POINTS + 4).ravel(), 0.5]


@pytest.mark.parametrize("same", [True, False])
def test_tree_is_drawn_from_the_seed(tmp_path, same):
    for name, seed in (("a", 1), ("b", 1 if same else 2)):
        write_tree(tmp_path / name, [9] * 20, seed, num_pairs=200)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*")]
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in files) == same
