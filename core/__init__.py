"""bctlab: backward-compatible training of embedding models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.models.encoder import load_encoder

__all__ = ["__version__", "load_encoder"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_encoder`, imported when it is first asked for: every import of a part of `core` passes through here."""
    if name == "load_encoder":
        from core.models.encoder import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
