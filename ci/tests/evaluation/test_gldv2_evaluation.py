import json

import numpy as np
import pytest

from core.errors import UserError
from core.evaluation.gldv2 import average_precisions, evaluate_gldv2, read_gldv2


def test_average_precision_by_hand():
    rows = np.array([[5, 1, 7, 2], [5, 1, 7, 2], [5, 1, 7, 2]])
    aps = average_precisions(rows, [[1, 2], [], [9]])
    assert aps[0] == (1 / 2 + 2 / 4) / 2 and np.isnan(aps[1]) and aps[2] == 0.0


def test_more_than_a_hundred_positives_are_divided_by_a_hundred_and_rank_101_does_not_count():
    rows = np.arange(150)[None]
    assert average_precisions(rows, [range(150)])[0] == 1.0
    assert average_precisions(rows, [[100]])[0] == 0.0
    half = average_precisions(np.concatenate((np.arange(50), np.arange(200, 300)))[None], [range(150)])
    assert half[0] == pytest.approx(0.5), "fifty of the hundred that fit are found, all of them first"


def test_public_private_and_ignored_queries():
    rows = np.array([[0, 1], [0, 1], [0, 1], [0, 1]])
    result = evaluate_gldv2(rows, [[0], [1], [], [1]], ["public", "private", "private", "ignored"])
    assert result.metrics == {"map@100": 0.75, "map@100_public": 1.0, "map@100_private": 0.5}
    assert evaluate_gldv2(rows[:1], [[0]], ["public"]).metrics["map@100_private"] is None
    assert result.curves["first 100"].tolist() == [0.75] * 101


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "gldv2_index.txt").write_text("index/a.jpg\nindex/b.jpg\n\n")
    (tmp_path / "gldv2_queries.txt").write_text("test/q.jpg\n")
    (tmp_path / "gldv2_ground_truth.json").write_text(json.dumps({"usage": ["Private"], "positives": [[1]]}))
    return tmp_path


def test_lists_are_read_from_the_folder_or_from_gldv2_below(lists):
    test = read_gldv2(lists)
    assert test.database.names == ["index/a.jpg", "index/b.jpg"] and test.queries.path(0) == lists / "test" / "q.jpg"
    assert test.evaluate(np.array([[1, 0]])).metrics["map@100_private"] == 1.0
    below = lists / "gldv2"
    below.mkdir()
    for path in list(lists.glob("gldv2_*")):
        path.rename(below / path.name)
    assert read_gldv2(lists, image_root="/images").queries.path(0).as_posix() == "/images/test/q.jpg"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"usage": ["Public"], "positives": [[2]]}', "query 0 is row 2 .* has 2 lines"),
        ('{"usage": ["Public"], "positives": [[-1]]}', "query 0"),
        ('{"usage": ["Public", "Public"], "positives": [[0], [1]]}', "has 1 queries"),
        ('{"usage": ["Public"]}', "positives"),
        ("{", "damaged"),
        (None, "gldv2_ground_truth.json"),
    ],
)
def test_damaged_ground_truth_is_named(lists, content, message):
    path = lists / "gldv2_ground_truth.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_gldv2(lists)


def test_missing_or_empty_list_is_named(lists):
    (lists / "gldv2_index.txt").write_text("\n")
    with pytest.raises(UserError, match="gldv2_index.txt lists no images"):
        read_gldv2(lists)
    (lists / "gldv2_queries.txt").unlink()
    with pytest.raises(UserError, match="gldv2_queries.txt"):
        read_gldv2(lists)
