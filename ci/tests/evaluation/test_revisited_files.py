import pickle

import numpy as np
import pytest
from landmark_trees import write_revisited_tree

from core.errors import UserError
from core.evaluation.revisited_files import read_revisited


@pytest.fixture
def tree(tmp_path):
    return write_revisited_tree(tmp_path / "data" / "roxford5k")


def change(tree, edit):
    path = tree / "gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    edit(content)
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_test_is_found_in_the_folder_above_and_in_the_folder_itself(tmp_path, protocol):
    tree = write_revisited_tree(tmp_path / "rparis6k", "rparis6k", protocol=protocol)
    for folder in (tmp_path, tree):
        test = read_revisited(folder, "rparis6k")
        assert test.queries.path(1) == tree / "jpg" / "query_1.jpg"
        assert test.database.path(28) == tree / "jpg" / "database_028.jpg" and len(test.database) == 29
        assert test.annotations[1]["hard"].tolist() == [9, 10]
        assert [list(map(int, part)) for part in test.judged(0)] == [[0, 1, 2, 3, 4], [5]]


def test_images_may_lie_one_folder_below_the_pickle(tree):
    (tree / "roxford5k").mkdir()
    (tree / "jpg").rename(tree / "roxford5k" / "jpg")
    assert read_revisited(tree, "roxford5k").database.path(0) == tree / "roxford5k" / "jpg" / "database_000.jpg"


def test_arrays_and_byte_strings_of_python_2_are_read(tree):
    def as_python_2(content):
        content["imlist"] = [name.encode() for name in content["imlist"]]
        for one in content["gnd"]:
            one["easy"], one["bbx"] = np.array(one["easy"], dtype=np.int32), np.array(one["bbx"])
        for key in list(content):
            content[key.encode()] = content.pop(key)

    change(tree, as_python_2)
    test = read_revisited(tree, "roxford5k")
    assert test.database.names[0] == "database_000.jpg" and test.annotations[2]["easy"].tolist() == [12, 13, 14]


NAMES = {
    "bytes of NumPy": lambda names: np.array(names, "S"),
    "text of NumPy": np.array,
    "objects": lambda names: np.array(names, object),
    "objects that are bytes": lambda names: np.array([name.encode() for name in names], object),
    "NumPy's scalars": lambda names: [np.bytes_(name) for name in names],
    "tuple": tuple,
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", NAMES)
def test_names_and_boxes_in_arrays_are_read_as_text_and_numbers(tmp_path, kind, protocol):
    tree = write_revisited_tree(tmp_path / "roxford5k")
    plain = read_revisited(tree, "roxford5k")

    def in_arrays(content):
        for key in ("imlist", "qimlist"):
            content[key] = NAMES[kind](content[key])
        for one in content["gnd"]:
            one["bbx"], one["hard"] = np.array(one["bbx"], object), np.array(one["hard"], object)
        content["gnd"] = np.array(content["gnd"], object)

    path = tree / "gnd_roxford5k.pkl"
    content = pickle.loads(path.read_bytes())
    in_arrays(content)
    path.write_bytes(pickle.dumps(content, protocol))
    test = read_revisited(tree, "roxford5k")
    assert list(test.database.names) == list(plain.database.names)
    assert list(test.queries.names) == list(plain.queries.names)
    np.testing.assert_array_equal(test.queries.boxes, plain.queries.boxes)
    for got, expected in zip(test.annotations, plain.annotations, strict=True):
        assert {label: rows.tolist() for label, rows in got.items()} == {
            label: rows.tolist() for label, rows in expected.items()
        }


@pytest.mark.parametrize("names", [np.array([["a"], ["b"]]), [["a"], ["b"]], [1, 2], "abc", {"a": 1}, [None]])
def test_what_is_no_list_of_names_is_refused(tree, names):
    change(tree, lambda content: content.update(imlist=names))
    with pytest.raises(UserError, match=r"gnd_roxford5k\.pkl is no ground truth .*imlist is no list of names"):
        read_revisited(tree, "roxford5k")


def test_list_that_holds_itself_is_refused(tree):
    def nest(content):
        content["imlist"].append(content["imlist"])

    change(tree, nest)
    with pytest.raises(UserError, match="a container that holds itself"):
        read_revisited(tree, "roxford5k")


def test_ranking_the_positives_first_is_perfect(tree):
    test = read_revisited(tree, "roxford5k")
    rows = [np.concatenate([one["junk"], one["easy"], one["hard"]]) for one in test.annotations]
    rows = np.array([np.append(first, np.setdiff1d(np.arange(29), first)) for first in rows])
    metrics = test.evaluate(rows).metrics
    assert set(metrics.values()) == {1.0}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["gnd"][1].update(hard=[3, 29]), "hard of query query_1 has the index 29, .* 29 images"),
        (lambda c: c["gnd"][0].update(junk=[-1]), "junk of query query_0 has the index -1"),
        (lambda c: c["gnd"][0].update(easy=[0.5]), "no list of indices"),
        (lambda c: c["gnd"][2].update(bbx=[5, 5, 5, 9]), "box .* of query query_2"),
        (lambda c: c["gnd"][2].update(bbx=[5, 5, 9]), "no ground truth"),
        (lambda c: c["gnd"][3].pop("junk"), "'junk'"),
        (lambda c: c.pop("qimlist"), "qimlist"),
        (lambda c: c["gnd"].pop(), "4 queries and 3 annotations"),
        (lambda c: c["imlist"].clear(), "0 database images"),
    ],
)
def test_wrong_ground_truth_is_reported_with_file_and_query(tree, edit, message):
    change(tree, edit)
    with pytest.raises(UserError, match=f"gnd_roxford5k.pkl.*{message}"):
        read_revisited(tree, "roxford5k")


def test_missing_pickle_images_and_folder_are_named(tree):
    with pytest.raises(UserError, match="nowhere"):
        read_revisited(tree / "nowhere", "roxford5k")
    with pytest.raises(UserError, match="gnd_rparis6k.pkl"):
        read_revisited(tree, "rparis6k")
    (tree / "jpg").rename(tree / "images")
    with pytest.raises(UserError, match="folder of images not found: .*jpg"):
        read_revisited(tree, "roxford5k")


def test_pickle_that_runs_code_is_refused(tree):
    class Attack:
        def __reduce__(self):
            return print, ("attacked",)

    (tree / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match="only plain containers"):
        read_revisited(tree, "roxford5k")
    (tree / "gnd_roxford5k.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="no ground truth"):
        read_revisited(tree, "roxford5k")
