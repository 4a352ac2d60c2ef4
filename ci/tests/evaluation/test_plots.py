import cv2
import numpy as np
import pytest

from core.errors import UserError
from core.evaluation.ijb import SearchCurves
from core.evaluation.plots import image_grid, plot_identification, plot_roc
from core.evaluation.tables import format_rate, format_table


def test_plots_are_written_whole_for_several_models_and_for_curves_without_points(tmp_path):
    rates = np.geomspace(1e-4, 1, 30)
    plot_roc(
        {"old/old": (rates, rates**0.2), "new/old": (rates, rates**0.1), "none": (rates[:0],) * 2}, tmp_path / "r.png"
    )
    nothing = SearchCurves(np.full(50, np.nan), rates, np.full(30, np.nan))
    curve = SearchCurves(np.linspace(0.5, 1, 50), rates, rates**0.2)
    plot_identification({"old/old": curve, "none": nothing}, tmp_path / "i.png")
    image_grid([np.zeros((20, 20, 3), np.uint8)] * 5, ["a", "", "c", "d", "e"], tmp_path / "g.png", columns=3)
    assert all(cv2.imread(str(tmp_path / f"{name}.png")).shape[0] > 200 for name in "rig")
    assert len(list(tmp_path.iterdir())) == 3


def test_plot_into_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        image_grid([np.zeros((4, 4, 3), np.uint8)], [""], tmp_path / "missing" / "g.png")


def test_table_has_aligned_columns():
    table = format_table(["model", "top1"], [["old", format_rate(0.5)], ["new / old", format_rate(None)]])
    assert table.splitlines() == ["model       top1", "---------  -----", "old        50.00", "new / old      -"]
