"""The retrieval tree in the layout of revisited Oxford: the writer, scenes with boxes, and the glyphs' tree."""

import dataclasses

import cv2
import numpy as np
import pytest

from core.builtin.corruption import Corruption
from core.builtin.dataset_folder import write_dataset_folder
from core.builtin.glyph_images import CELL, capture, capture_scenes
from core.builtin.glyphs import glyph_source
from core.builtin.roxford_tree import GRADES, NOT_QUERIED, LandmarkImages, write_roxford_tree
from core.images.codec import decode_image
from core.restricted_pickle import load_plain_pickle

SIZE = 32


def read_tree(folder):
    truth = load_plain_pickle(folder / "gnd_roxford5k.pkl")
    return truth["imlist"], truth["qimlist"], truth["gnd"]


def write_tree(folder, seed=0):
    """Three queries; the content of a database image is its identity and grade. Returns the counts."""
    identities = np.array([0, 0, 0, 1, 1, 2, NOT_QUERIED, NOT_QUERIED, 0, 2])
    grades = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])
    queries = ((b"query %d" % q, np.array([0.5, q, 10, 20.25])) for q in range(3))
    database = (b"%d %d" % pair for pair in zip(identities, grades))
    return write_roxford_tree(folder, LandmarkImages(queries, database, 3, identities, grades), seed)


def test_truth_names_the_images_that_were_written_and_holds_plain_values(tmp_path):
    counts = write_tree(tmp_path / "roxford5k")
    names, query_names, truth = read_tree(tmp_path / "roxford5k")
    assert counts == {"queries": 3, "database": 10, "easy": 3, "hard": 2, "junk": 3}
    content = [(tmp_path / "roxford5k" / "jpg" / f"{name}.jpg").read_text() for name in names]
    assert len(set(names + query_names)) == len(list((tmp_path / "roxford5k" / "jpg").iterdir())) == 13
    for q, (name, one) in enumerate(zip(query_names, truth)):
        assert (tmp_path / "roxford5k" / "jpg" / f"{name}.jpg").read_text() == f"query {q}"
        assert one["bbx"] == [0.5, q, 10, 20.25] and all(type(edge) is float for edge in one["bbx"])
        for g, grade in enumerate(GRADES):
            assert one[grade] == [i for i, text in enumerate(content) if text == f"{q} {g}"]
            assert all(type(i) is int for i in one[grade])
    assert truth[1]["easy"] == [] and len(truth[0]["easy"]) == 2


def test_places_are_drawn_from_the_seed(tmp_path):
    trees = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tree(tmp_path / name, seed)
        trees.append((tmp_path / name / "gnd_roxford5k.pkl").read_bytes())
    assert trees[0] == trees[1] != trees[2]


def test_box_of_a_scene_is_the_frame_of_the_first_character():
    masks = np.zeros((2, 1, CELL, CELL), np.uint8)
    masks[0, 0, 12:-12, 12:-12] = 255
    characters = np.repeat([[0] + [1] * 8], 40, axis=0)
    still = Corruption((0, 0), 0)
    sides = []
    for jpeg, box in capture_scenes(masks, characters, characters * 0, SIZE, np.random.default_rng(0), still):
        image = decode_image(jpeg)
        assert image.shape == (4 * SIZE, 4 * SIZE, 3)
        left, top, right, bottom = box
        assert 0 <= left < right <= 4 * SIZE and 0 <= top < bottom <= 4 * SIZE
        sides.append(right - left)
        assert right - left == pytest.approx(bottom - top)
        ink = np.abs(image.astype(int) - np.median(image, axis=(0, 1))).max(axis=2) > 60
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        expected = np.array([left, top, left, top]) + sides[-1] * np.repeat([12 / CELL, 1 - 12 / CELL], 2)
        assert np.abs(edges - expected).max() < 1.5
    assert SIZE <= min(sides) < 1.05 * SIZE and 1.25 * SIZE < max(sides) <= 4 / 3 * SIZE


def test_image_without_corruption_has_two_colours_and_more_corruption_spreads_them():
    masks = np.zeros((1, 1, CELL, CELL), np.uint8)
    masks[0, 0, 16:-16, 16:-16] = 255
    rows = np.zeros(50, int)
    spread = []
    for corruption in (Corruption((0, 0), 0), Corruption((0.5, 1), 0.5), Corruption((1, 1.8), 1, (2.5, 3.4))):
        images = [decode_image(s.jpeg) for s in capture(masks, rows, rows, SIZE, np.random.default_rng(0), corruption)]
        inside, ground = np.zeros((SIZE, SIZE), bool), np.ones((SIZE, SIZE), bool)
        inside[10:-10, 10:-10] = True
        ground[6:-6, 6:-6] = False
        within = [np.mean([image[part].std(axis=0).mean() for part in (inside, ground)]) for image in images]
        spread.append(np.mean(within))
    assert spread[0] < 3 and spread[0] * 3 < spread[1] < spread[2]


@pytest.fixture(scope="module")
def glyph_tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs") / "roxford5k"
    write_roxford_tree(folder, glyph_source(3, SIZE, 60).landmarks, 3)
    return folder


def correlations(query, images):
    """Absolute ones, as ink may be lighter than the ground."""
    rows = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).ravel().astype(float) for image in (query, *images)])
    return np.abs(np.corrcoef(rows)[0, 1:])


def test_glyph_queries_need_their_boxes_and_grades_differ_in_difficulty(glyph_tree):
    names, query_names, truth = read_tree(glyph_tree)
    read = {name: decode_image((glyph_tree / "jpg" / f"{name}.jpg").read_bytes()) for name in (*names, *query_names)}
    database = [read[name] for name in names]
    assert {image.shape for image in database} == {(SIZE, SIZE, 3)}
    assert len(query_names) == 6 and len(names) == 6 * 15 + 6 * 4
    alike, whole = {grade: [] for grade in (*GRADES, "others")}, []
    for name, one in zip(query_names, truth):
        left, top, right, bottom = np.rint(one["bbx"]).astype(int)
        crop = cv2.resize(read[name][top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        found = correlations(crop, database)
        shown = [i for grade in GRADES for i in one[grade]]
        for grade in GRADES:
            alike[grade].append(found[one[grade]].mean())
        alike["others"].append(np.delete(found, shown).mean())
        shrunk = cv2.resize(read[name], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        whole.append(correlations(shrunk, database)[one["easy"]].mean())
    easy, hard, junk, others = (np.mean(alike[key]) for key in (*GRADES, "others"))
    assert easy > 1.2 * hard > 1.44 * junk and easy > 1.5 * others
    assert np.mean(whole) < others


def test_retrieval_images_are_drawn_apart_from_the_others(tmp_path):
    first, second = (glyph_source(3, SIZE, 30) for _ in range(2))
    list(second.landmarks.queries)
    list(second.landmarks.database)
    assert list(first.jpegs) == list(second.jpegs)
    assert [s.jpeg for s in first.evaluation.samples] == [s.jpeg for s in second.evaluation.samples]


def test_data_set_without_a_retrieval_test_gets_no_tree(tmp_path):
    source = glyph_source(3, SIZE, 30)
    made = write_dataset_folder(
        tmp_path / "with", dataclasses.replace(source, jpegs=iter([b""] * len(source.labels))), 3
    )
    assert made["eval/roxford5k"]["queries"] == 3 and (tmp_path / "with" / "eval" / "roxford5k" / "jpg").is_dir()
    evaluation = dataclasses.replace(source.evaluation, samples=())
    source = dataclasses.replace(source, jpegs=iter([b""] * len(source.labels)), evaluation=evaluation, landmarks=None)
    made = write_dataset_folder(tmp_path / "without", source, 3)
    assert "eval/roxford5k" not in made
    assert [path.name for path in (tmp_path / "without" / "eval").iterdir()] == ["IJBC"]
