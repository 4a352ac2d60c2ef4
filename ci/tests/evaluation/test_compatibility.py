import numpy as np
import pytest

from core.evaluation.compatibility import scores

# AdvBCT (CVPR 2023), results table of the released repository, block "Extended-data" (R18 to R18), mAP in per cent on
# RParis, ROxford, GLDv2-test. By method: self, cross, and the printed p_up, p_comp, p_1.
OLD, STAR, STAR_CROSS = (75.45, 49.15, 10.03), (81.15, 63.85, 16.48), (4.93, 1.2, 0.2)
ROWS = {
    "BCT": ((80.58, 56.34, 14.61), (77.37, 49.66, 11.3), (48.02, 54.71, 51.13)),
    "UniBCT": ((80.93, 57.24, 16.06), (78.3, 50.97, 13.25), (48.9, 59.19, 53.52)),
    "Hot-refresh": ((79.57, 58.15, 13.88), (76.53, 50.05, 10.35), (47.78, 52.5, 50.03)),
    "AdvBCT": ((82.78, 62.13, 15.71), (78.55, 52.31, 11.49), (49.55, 58.09, 53.45)),
}


@pytest.mark.parametrize("method", ROWS)
def test_scores_are_those_printed_in_the_paper(method):
    self_new, cross, printed = ROWS[method]
    result = scores(self_new, STAR, cross, OLD)
    # the printed digits of the inputs allow 0.02 of slack
    np.testing.assert_allclose((result.p_up, result.p_comp, result.p_1), printed, atol=0.02)
    assert result.compatible == (True, True, True)


def test_independent_model_is_not_compatible_and_gains_nothing():
    result = scores(STAR, STAR, STAR_CROSS, OLD)
    assert result.p_up == pytest.approx(50)
    assert result.p_comp < 20 and result.compatible == (False, False, False)
    assert result.update_gain[0] == pytest.approx((4.93 - 75.45) / (81.15 - 75.45))


def test_scores_reject_unequal_lengths_and_undefined_ratios():
    with pytest.raises(ValueError, match="one score a test set"):
        scores([80.0, 1.0], [81.0], [70.0], [60.0])
    with pytest.raises(ValueError, match="differ from 0 and from old"):
        scores([80.0], [60.0], [70.0], [60.0])
    with pytest.raises(ValueError, match="finite"):
        scores([80.0], [float("nan")], [70.0], [60.0])
