"""The classifier that the settings ask for: the same keys in every training program."""

from core.errors import UserError
from core.heads.margins import ArcFace, CosFace, Margin, Softmax
from core.heads.partial_fc import PartialFC
from core.settings import Settings

__all__ = ["build_head", "build_margin"]

MARGINS = {"arcface": ArcFace, "cosface": CosFace}


def build_margin(loss: str, margin_scale: float, margin: float) -> Margin:
    """The margin of the loss ("arcface", "cosface" or "softmax") with scale s and margin m; softmax has neither.

    `UserError` for another loss, or a scale that is not above 0.
    """
    if loss == "softmax":
        return Softmax()
    if loss not in MARGINS:
        raise UserError(f"unknown loss {loss!r}: choose 'arcface', 'cosface' or 'softmax'")
    if margin_scale <= 0:
        raise UserError(f"margin_scale must be above 0, got {margin_scale}: {loss} scales its cosines by it")
    return MARGINS[loss](margin_scale, margin)


def build_head(settings: Settings, num_classes: int) -> PartialFC:
    """The head over `num_classes` classes; a softmax has a bias where `classifier_bias` is set."""
    margin = build_margin(settings.loss, settings.margin_scale, settings.margin)
    bias = settings.classifier_bias and not margin.normalized
    return PartialFC(margin, settings.embedding_size, num_classes, settings.sample_rate, bias)
