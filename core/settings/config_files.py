"""Config files and `key=value` overrides as typed settings.

A config file assigns an EasyDict named `config`. Values come, later over earlier, from the defaults of the settings
class, from the files that `config.base` names (one, or a list), from the file itself, and from the overrides.
"""

import ast
import difflib
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError
from core.files import resolve
from core.settings.keys import Key, keys_of
from core.settings.settings import Settings

__all__ = ["load_settings"]

S = TypeVar("S", bound=Settings)
COMMAND_LINE = "the command line"


def load_settings(path: str | Path, overrides: Sequence[str] = (), settings_type: type[S] = Settings) -> S:
    """The settings of the config at `path` (relative to the working directory) with `overrides` such as `lr=0.05`.

    An unset `output` becomes `work_dirs/<name of the file>`. Raises `UserError` for a missing or broken file, an
    unknown key (with the nearest known one), or a value of the wrong type or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config not found: {path} (looked in {Path.cwd()})")
    keys, values = keys_of(settings_type), {}
    for file, assigned in _with_bases(path):
        for name, value in assigned.items():
            values[name] = _known(keys, name, str(file)).checked(value, str(file))
    for text in overrides:
        name, option, value = _parse_override(text)
        key = _known(keys, name, COMMAND_LINE)
        if option:
            value = {**_parts(key, values, text), option: value}
        values[name] = key.checked(value, COMMAND_LINE)
    if values.get("output") is None:
        values["output"] = f"work_dirs/{path.stem}"
    return settings_type(**values)


def _with_bases(path: Path, children: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """What the file and the files that it inherits from assign, the file itself last."""
    if path.resolve() in children:
        raise UserError(f"config {path} inherits from itself")
    values = _read(path)
    bases = values.pop("base", None) or ()
    files = []
    for base in bases if isinstance(bases, list | tuple) else [bases]:
        file = resolve(str(base))
        if not file.is_file():
            raise UserError(f"config {path} names a base that does not exist: {file}")
        files += _with_bases(file, (*children, path.resolve()))
    return [*files, (path, values)]


def _read(path: Path) -> dict[str, Any]:
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # a config file is code and may fail in any way
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "unknown"
        raise UserError(f"config {path}, line {line}, cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path} must assign an EasyDict named `config`")
    return dict(config)


def _parse_override(text: str) -> tuple[str, str, Any]:
    """Key, the part of it that is set ("" for the whole) and value."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise UserError(f"an override is written key=value, got {text!r}")
    name, _, option = name.partition(".")
    literal = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower(), value)
    try:
        return name, option, ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError):  # the last of a list as a dict's key
        return name, option, value


def _known(keys: dict[str, Key], name: str, source: str) -> Key:
    if name not in keys:
        near = difflib.get_close_matches(name, keys, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown config key {name!r} in {source}{hint} (train.py --help lists all keys)")
    return keys[name]


def _parts(key: Key, values: dict[str, Any], override: str) -> dict[str, Any]:
    """The present value of a key whose parts can be set one by one."""
    parts = values.get(key.name, key.default)
    if not isinstance(parts, dict):
        raise UserError(f"config key {key.name!r} in {COMMAND_LINE} has no parts, got {override!r}")
    return parts
