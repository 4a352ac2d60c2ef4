"""Names of what is being written or removed, beside the output that it is for."""

import re
import secrets
from pathlib import Path

__all__ = ["final_path", "is_temporary", "name_of", "temporary_name"]

TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")
"""Names of folders with what is being written or removed, made from the output's name."""


def is_temporary(name: str) -> bool:
    """Whether a name in a folder of outputs is that of something being written, or left by a killed program."""
    return TEMPORARY.fullmatch(name) is not None


def temporary_name(name: str) -> str:
    """A new one for the output `name`. It is random: a process number may be another one's in another container."""
    return f".{name}.{secrets.token_hex(4)}.tmp"


def name_of(folder: Path) -> str:
    """The name of the output for which a temporary folder was made."""
    found = TEMPORARY.fullmatch(folder.name)
    assert found is not None
    return found[1]


def final_path(path: str | Path) -> Path:
    """The name that a file will have which is written below a temporary folder."""
    return Path(*(part for part in Path(path).parts if not is_temporary(part)))
