"""The drawn data of the plots: lines, marks, cells, frames and axes of the figures that are written as PNG."""

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from core.errors import UserError
from core.evaluation.identification import SearchCurves
from core.evaluation.plots import (
    FRAMES,
    QUERY_FRAME,
    image_grid,
    plot_hits,
    plot_identification,
    plot_matrices,
    plot_precision_recall,
    plot_roc,
    plot_trade_off,
)
from core.evaluation.precision_recall import RECALLS
from core.evaluation.tables import format_rate, format_table

RATES = np.geomspace(1e-4, 1, 30)


def lines(axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}


def legend(holder) -> list[str]:
    return [text.get_text() for text in holder.get_texts()]


def is_png(path) -> bool:
    return cv2.imread(str(path)) is not None


def test_roc_draws_each_model_over_a_logarithmic_axis_from_the_lowest_rate(tmp_path):
    curves = {"old/old": (RATES, RATES**0.2), "new/old": (RATES[3:], RATES[3:] ** 0.1), "none": (RATES[:0],) * 2}
    figure = plot_roc(curves, tmp_path / "roc.png", "a title")
    (axes,) = figure.axes
    drawn = lines(axes)
    assert list(drawn) == legend(axes.get_legend()) == list(curves)
    for name, (fpr, tpr) in curves.items():
        np.testing.assert_array_equal(drawn[name], (fpr, tpr))
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-4, 1) and axes.get_title() == "a title"
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}) == 3
    assert is_png(tmp_path / "roc.png") and len(list(tmp_path.iterdir())) == 1


def test_identification_draws_dir_over_fpir_and_cmc_over_ranks(tmp_path):
    nothing = SearchCurves(np.full(50, np.nan), RATES, np.full(30, np.nan))
    curve = SearchCurves(np.linspace(0.5, 1, 50), RATES, np.where(RATES < 1e-3, np.nan, RATES**0.2))
    figure = plot_identification({"old/old": curve, "none": nothing}, tmp_path / "i.png")
    detection, ranking = figure.axes
    np.testing.assert_array_equal(lines(detection)["old/old"], (RATES, curve.tpir))
    np.testing.assert_array_equal(lines(ranking)["old/old"], (np.arange(1, 51), curve.cmc))
    assert detection.get_xlim() == (RATES[RATES >= 1e-3][0], 1) and ranking.get_xlim() == (1, 50)
    assert [label.get_text() for label in ranking.get_xticklabels()] == ["1", "2", "5", "10", "20", "50"]
    assert is_png(tmp_path / "i.png")


def test_precision_recall_draws_the_precision_at_each_recall(tmp_path):
    curves = {"easy": 1 - RECALLS**2, "none": np.full(101, np.nan)}
    (axes,) = plot_precision_recall(curves, tmp_path / "curves.png", "test").axes
    np.testing.assert_array_equal(lines(axes)["easy"], (RECALLS, 1 - RECALLS**2))
    assert np.isnan(lines(axes)["none"][1]).all() and axes.get_xlim() == (0, 1)


def test_grid_shows_the_images_with_their_titles_row_by_row(tmp_path):
    images = [np.full((20, 20, 3), 40 * i, np.uint8) for i in range(5)]
    figure = image_grid(images, ["a", "", "c", "d", "e"], tmp_path / "g.png", columns=3)
    shown = [axes.get_images()[0].get_array()[0, 0, 0] for axes in figure.axes if axes.get_images()]
    assert shown == [0, 40, 80, 120, 160] and len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes] == ["a", "", "c", "d", "e", ""]


def test_trade_off_marks_the_mean_of_each_method_with_its_range_beside_both_baselines(tmp_path):
    points = {"bct": (np.array([80.0, 84.0]), np.array([60.0, 61.0])), "l2": (np.array([70.0]), np.array([65.0]))}
    figure = plot_trade_off({"rank-1": (points, 55.0, 83.0)}, tmp_path / "t.png")
    (axes,) = figure.axes
    marks = {bar.get_label(): bar for bar in axes.containers}
    assert [marks[name][0].get_xydata()[0].tolist() for name in points] == [[82, 60.5], [70, 65]]
    across, upwards = (bars.get_segments()[0] for bars in marks["bct"][2])
    assert across[:, 0].tolist() == [80, 84] and upwards[:, 1].tolist() == [60, 61]
    baselines = {line.get_label(): line for line in axes.get_lines()}
    assert baselines["old/old"].get_ydata() == [55, 55] and baselines["independent/independent"].get_xdata() == [83, 83]
    assert set(legend(figure.legends[0])) == {"bct", "l2", "old/old", "independent/independent"}


def test_matrices_draw_rates_and_texts_and_leave_unknown_cells_grey(tmp_path):
    rates = np.array([[0.5, 0.2], [np.nan, 0.9]])
    texts = [["50.0", "20.0"], ["-", "90.0"]]
    figure = plot_matrices(
        {"top1": (rates, texts), "none": (np.full((2, 2), np.nan), [["-"] * 2] * 2)}, "ab", tmp_path / "m.png"
    )
    first, second = figure.axes
    np.testing.assert_array_equal(np.ma.filled(first.get_images()[0].get_array(), np.nan), rates)
    assert [text.get_text() for text in first.texts] == ["50.0", "20.0", "-", "90.0"]
    assert [text.get_text() for text in second.texts] == ["-"] * 4 and to_hex(first.get_facecolor()) == "#dddddd"
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    assert (first.get_xlabel(), first.get_ylabel()) == ("gallery model", "query model")


def test_hits_are_framed_by_their_kind_and_titled_by_rank_and_score(tmp_path):
    shapes = [(20, 30), (900, 400), (16, 16)]
    hits = [np.full((*shape, 3), 120, np.uint8) for shape in shapes]
    figure = plot_hits(hits[1], hits, ["positive", "negative", "junk"], [0.9, 0.5, -0.1], tmp_path / "hits.png")
    assert [axes.get_title() for axes in figure.axes] == ["query", "1: 0.900", "2: 0.500", "3: -0.100"]
    frames = [to_hex(axes.spines["top"].get_edgecolor()) for axes in figure.axes]
    assert frames == [QUERY_FRAME, FRAMES["positive"], FRAMES["negative"], FRAMES["junk"]]
    assert max(figure.axes[0].get_images()[0].get_array().shape) <= 2 * 256
    assert len(plot_hits(hits[0], hits[:1], ["negative"], [0.1], tmp_path / "one.png").axes) == 2


def test_plot_into_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        image_grid([np.zeros((4, 4, 3), np.uint8)], [""], tmp_path / "missing" / "g.png")


def test_table_has_aligned_columns():
    table = format_table(["model", "top1"], [["old", format_rate(0.5)], ["new / old", format_rate(None)]])
    assert table.splitlines() == ["model       top1", "---------  -----", "old        50.00", "new / old      -"]
