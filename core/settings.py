"""Python EasyDict configs: defaults, inheritance, `key=value` overrides, and checks that catch misspelt keys.

A config file assigns an EasyDict named `config`. Values come, later over earlier, from `configs/base.py`, from the
program's own `configs/base.py` (a method's settings), from the file that `config.base` names, from the file itself, and
from the overrides. Only keys that one of the two base files defines are accepted.
"""

import ast
import difflib
import runpy
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from core.errors import UserError
from core.files import ROOT, resolve

__all__ = ["default_settings", "load_config"]

BASE_FILE = ROOT / "configs" / "base.py"
WHOLE_NUMBERS_OR_NONE = ("image_size",)
"""Of the keys whose default is None; the others take a string."""
COUNTS = "image_size embedding_size batch_size gradient_acc num_epoch checkpoint_steps frequent verbose".split()
"""Keys whose value is at least 1."""
NOT_NEGATIVE = "num_workers seed lr momentum weight_decay warmup_epoch schedule_power schedule_gamma clip_norm".split()
LARGEST_SEED = 2**32 - 1


def load_config(path: str | Path, overrides: Sequence[str] = (), program_base: Path | None = None) -> EasyDict:
    """The config at `path` (relative to the working directory) with `overrides` such as `lr=0.05`.

    `program_base`: a program's own defaults. An unset `output` becomes `work_dirs/<name of the file>`. Raises
    `UserError` for a missing or broken file, an unknown key (with the nearest known one), or a value of the wrong
    type or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"config not found: {path} (looked in {Path.cwd()})")
    config = EasyDict()
    for base in (BASE_FILE, program_base):
        if base is not None and base.is_file():
            config.update(_read(base))
    known = EasyDict(config)
    for source, values in _inheritance(path):
        _merge(config, values.items(), known, str(source))
    _merge(config, map(_parse_override, overrides), known, "the command line")
    for minimum, names in ((1, COUNTS), (0, NOT_NEGATIVE)):
        for name in names:
            if config[name] is not None and config[name] < minimum:
                raise UserError(f"config key {name!r} must be at least {minimum}, got {config[name]!r}")
    if config.seed > LARGEST_SEED:
        raise UserError(f"config key 'seed' must be at most {LARGEST_SEED}, got {config.seed}")
    if config.output is None:
        config.output = f"work_dirs/{path.stem}"
    return config


def default_settings(program_base: Path | None = None) -> str:
    """The settings of the base files with their comments, as text for `--help`."""
    files = [file for file in (BASE_FILE, program_base) if file is not None and file.is_file()]
    lines = [line for file in files for line in file.read_text().splitlines()]
    return "\n".join(line.removeprefix("config.") for line in lines if line.startswith(("config.", "# ")))


def _read(path: Path) -> EasyDict:
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # whatever a config file does wrong is the user's to mend
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "unknown"
        raise UserError(f"config {path}, line {line}, cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path} must assign an EasyDict named `config`")
    return EasyDict(config)


def _inheritance(path: Path) -> list[tuple[Path, EasyDict]]:
    """The file and the files it inherits from, the most general first."""
    chain: list[tuple[Path, EasyDict]] = []
    while True:
        if any(path == seen for seen, _ in chain):
            raise UserError(f"config {path} inherits from itself")
        values = _read(path)
        parent = values.pop("base", None)
        chain.append((path, values))
        if parent is None:
            return chain[::-1]
        source, path = path, resolve(str(parent))
        if not path.is_file():
            raise UserError(f"config {source} names a base that does not exist: {path}")


def _parse_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UserError(f"an override is written key=value, got {text!r}")
    literal = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower(), value)
    try:
        return key, ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError):  # the last of a list as a dict's key
        return key, value


def _merge(config: EasyDict, items: Iterable[tuple[str, Any]], known: EasyDict, source: str) -> None:
    for key, value in items:
        name, _, option = key.partition(".")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"unknown config key {name!r} in {source}{hint} (configs/base.py lists all keys)")
        if option:
            if not isinstance(config[name], dict):
                raise UserError(f"config key {name!r} in {source} has no parts, got {key!r}")
            config[name][option] = value
        else:
            config[name] = _checked(name, value, known[name], source)


def _checked(name: str, value: Any, default: Any, source: str) -> Any:
    """`value` if it has the type of `default` (a whole number may stand for a float, a list for a tuple)."""
    if default is None:
        if value is None:
            return None
        default = 0 if name in WHOLE_NUMBERS_OR_NONE else ""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, str | list | tuple):
        values = (value,) if isinstance(value, str) else tuple(value)
        kind = str if isinstance(default[0] if default else "", str) else int | float
        if not all(isinstance(part, kind) for part in values):
            what = "names" if kind is str else "numbers"
            raise UserError(f"config key {name!r} in {source} must be a list of {what}, got {value!r}")
        return values
    if isinstance(default, dict) and isinstance(value, dict):
        return EasyDict(value)
    if type(value) is not type(default):
        raise UserError(f"config key {name!r} in {source} must be of type {type(default).__name__}, got {value!r}")
    return value
