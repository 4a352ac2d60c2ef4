"""Shared by the network families: the check of integer options, and the description of a network read from weights."""

from dataclasses import dataclass, field

from core.errors import UserError

__all__ = ["Layout", "require_positive"]


@dataclass(frozen=True)
class Layout:
    """A network as the shapes of a state dict determine it: the names that fit it, and the options to build it with."""

    names: tuple[str, ...]
    embedding_size: int
    image_size: int
    options: dict[str, object] = field(default_factory=dict)
    normalization: str = "face"
    """Of the images (`core.images.transforms.NORMALIZATIONS`), used where no config or metadata states it."""
    ends_in_pooling: bool = False
    """True: the embedding is the pooled feature, and a linear layer beside the weights may be meant to follow it."""


def require_positive(**values: object) -> None:
    """Raise `UserError` for the first value that is not a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")
