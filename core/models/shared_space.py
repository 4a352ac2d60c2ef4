"""Which spaces a model embeds in, and whether a map leads to that of the model that it is compared with."""

import logging

from core.errors import UserError
from core.models.encoder import Encoder

__all__ = ["require_shared_space", "spaces_of"]

logger = logging.getLogger(__name__)


def require_shared_space(first: Encoder, second: Encoder) -> None:
    """`UserError` if a map's run folder is compared with a model behind it: the map leads away from that one's space.

    A warning if nothing says that the other model's space is the one that the map leads to. Models without a map are
    not judged: whether they are compatible is what a test is to find out.
    """
    for mapped, other in ((first, second), (second, first)):
        if mapped.map is None or mapped.map.target.fingerprint is None or spaces_of(mapped) & spaces_of(other):
            continue
        source, target = mapped.map.source, mapped.map.target
        if other.fingerprint in [model.fingerprint for model in mapped.models]:
            raise UserError(
                f"{mapped.name} and {other.name} cannot be compared: the map leads from {source} to {target}; compare "
                "it with that model, or name a map of the other direction"
            )
        logger.warning(
            "%s leads to the space of %s, and nothing says that %s embeds in that space: if it does not, the scores "
            "mean nothing", mapped.name, target, other.name,
        )  # fmt: skip
        return


def spaces_of(encoder: Encoder) -> set[str]:
    """Fingerprints of the models whose spaces it embeds in, its own among them, as far as is known."""
    target = None if encoder.map is None else encoder.map.target.fingerprint
    known = encoder.fingerprint, encoder.old_model_fingerprint, target
    return {fingerprint for fingerprint in known if fingerprint is not None}
