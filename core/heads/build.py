"""The classifier that a config asks for: the same keys in every training program."""

from easydict import EasyDict

from core.errors import UserError
from core.heads.margins import ArcFace, CosFace, Margin, Softmax
from core.heads.partial_fc import PartialFC

__all__ = ["build_head", "build_margin"]

MARGINS = {"arcface": ArcFace, "cosface": CosFace}


def build_margin(config: EasyDict) -> Margin:
    """The margin of the keys `loss` ("arcface", "cosface" or "softmax"), `margin_scale` (s) and `margin` (m).

    The plain softmax has neither s nor m. `UserError` for another loss, or a scale that is not above 0.
    """
    if config.loss == "softmax":
        return Softmax()
    if config.loss not in MARGINS:
        raise UserError(f"unknown loss {config.loss!r}: choose 'arcface', 'cosface' or 'softmax'")
    if config.margin_scale <= 0:
        raise UserError(
            f"margin_scale must be above 0, got {config.margin_scale}: {config.loss} scales its cosines by it"
        )
    return MARGINS[config.loss](config.margin_scale, config.margin)


def build_head(config: EasyDict, num_classes: int) -> PartialFC:
    """The head over `num_classes` classes: `build_margin`'s, with a bias where softmax and `classifier_bias` say so."""
    margin = build_margin(config)
    bias = config.classifier_bias and not margin.normalized
    return PartialFC(margin, config.embedding_size, num_classes, config.sample_rate, bias)
