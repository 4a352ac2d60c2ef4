"""Which version of a gallery's vectors a model argument stands for.

A model argument is that of `core.models.encoder.load_encoder`, a .pt state dict with its network, or, for a model that
is not at hand, name:TEXT.
"""

from pathlib import Path

from core.errors import UserError
from core.gallery.store import Store, Version
from core.models.encoder import load_encoder

__all__ = ["NAMED", "key_of", "version_of"]

NAMED = "name:"


def version_of(model: str | Path, size: int, network: str | None = None) -> Version:
    """The version of vectors (N, `size`) by a model; `UserError` if there is none, or it gives another size."""
    if (name := _name(model)) is not None:
        return Version(name, name, size)
    encoder = load_encoder(model, network)
    if encoder.embedding_size != size:
        raise UserError(
            f"the vectors have size {size}, but {model} gives vectors of size {encoder.embedding_size}: name the model "
            f"that made them, or give them a name ({NAMED}vendor-v1)"
        )
    return Version(encoder.fingerprint, encoder.name, size, str(Path(model).absolute()))


def key_of(store: Store, model: str | Path, network: str | None = None) -> str:
    """The key of a model, which may itself be given; the gallery need not have vectors of it.

    `UserError` if it is neither a key of the gallery's nor a model.
    """
    name = _name(model)
    versions = store.versions()
    if name is not None or str(model) in versions:
        return str(model) if name is None else name
    if not Path(model).exists():
        known = " and ".join(f"{NAMED}{key}" if key == each.name else key for key, each in versions.items())
        raise UserError(f"model not found: {model}; {store.place} has vectors of {known or 'no model'}")
    return load_encoder(model, network).fingerprint


def _name(model: str | Path) -> str | None:
    """The text of a model that is not at hand."""
    if not str(model).startswith(NAMED):
        return None
    name = str(model).removeprefix(NAMED)
    if not name or not name.isprintable() or name != name.strip():
        raise UserError(f"{model!r} is no name of a model: write, for example, {NAMED}vendor-v1")
    return name
