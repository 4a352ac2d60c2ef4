import cv2
import numpy as np

from core.evaluation.plots import plot_hits, plot_precision_recall


def test_curves_and_hits_of_any_number_and_shape_are_written(tmp_path):
    recalls = np.linspace(0, 1, 101)
    plot_precision_recall({"easy": 1 - recalls**2, "none": np.full(101, np.nan)}, tmp_path / "curves.png", "test")
    shapes = [(20, 30), (900, 400), (16, 16)]
    hits = [np.full((*shape, 3), 120, np.uint8) for shape in shapes]
    plot_hits(hits[1], hits, ["positive", "negative", "junk"], [0.9, 0.5, -0.1], tmp_path / "hits.png")
    plot_hits(hits[0], hits[:1], ["negative"], [0.1], tmp_path / "one.png")
    assert all(cv2.imread(str(path)) is not None for path in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 3
