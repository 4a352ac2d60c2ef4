"""Config files and `key=value` overrides as typed settings.

A config file assigns an EasyDict named `config`. Values come, later over earlier, from the defaults of the settings
class, from the files that `config.base` names (one, or a list), from the file itself, and from the overrides.
"""

import ast
import difflib
import logging
import os
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core.errors import UserError
from core.files import resolve
from core.settings.foreign_keys import translate
from core.settings.keys import Key, keys_of, shown
from core.settings.settings import ProgramSettings, Settings

__all__ = ["load_settings", "split_arguments"]

logger = logging.getLogger(__name__)
S = TypeVar("S", bound=ProgramSettings)
COMMAND_LINE = "the command line"
CONFIG_OPTIONS = ("--config", "--cfg", "-c")
LONGEST_OVERRIDE = 10_000
"""Characters: more than any path or list of names has, and few enough for Python's parser."""


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The config's path and the overrides in the words of a command line; `UserError` if there is no config.

    `--key=value` and `--key value` are overrides too, and so is `--key` alone, for True.
    """
    configs: list[str] = []
    overrides: list[str] = []
    words = [word for word in arguments if word not in CONFIG_OPTIONS]  # the config comes next, in its usual form
    while words:
        word = words.pop(0)
        if word.startswith("-"):
            name, separator, value = word.lstrip("-").partition("=")
            if not separator:
                value = words.pop(0) if words and _is_value(words[0]) else "True"
            if _plain(name) != "local_rank":  # from torch.distributed.launch, which sets LOCAL_RANK too
                overrides.append(f"{name}={value}")
        elif not configs and ("=" not in word or os.path.isfile(word)):
            configs.append(word)
        else:
            overrides.append(word)
    if not configs:
        raise UserError("no config is named, for example configs/glyphs.py (see train.py --help)")
    return configs[0], overrides


def load_settings(path: str | Path, overrides: Sequence[str] = (), settings_type: type[S] = Settings) -> S:
    """The settings of the config at `path` (relative to the working directory) with `overrides` such as `lr=0.05`.

    An unset `output` becomes `work_dirs/<name of the file>`. Raises `UserError` for a missing or broken file, an
    unknown key (with the nearest known one), a value of the wrong type or out of range, or a path that was meant
    relative to the working directory. Keys of other programs that can mean only one thing are taken as that.
    """
    path = _config_file(Path(path))
    keys, values = keys_of(settings_type), {}
    for file, assigned in _with_bases(path):
        values |= _understood(keys, assigned, str(file))
    for text in overrides:
        name, option, value = _parse_override(text)
        if option:
            name = _own_name(keys, name)
            value = {**_parts(keys, name, values, text), option: value}
        values |= _understood(keys, {name: value}, COMMAND_LINE)
    for name, key in keys.items():
        if key.path and values.get(name) is not None:
            _require_meant(key, values[name])
    if values.get("output") is None:
        values["output"] = f"work_dirs/{path.stem}"
    return settings_type(**values)


def _config_file(path: Path) -> Path:
    """The path, or with `.py` where it is named without."""
    for file in (path, Path(f"{path}.py")):
        if file.is_file():
            return file
    if path.is_dir():
        raise UserError(f"config {path} is a folder: name a file in it")
    raise UserError(f"config not found: {path} (looked in {Path.cwd()})")


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
        if isinstance(error, OSError) and error.filename == str(path):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else "unknown"
        advice = "" if path.suffix == ".py" else "; a config is a Python file"
        raise UserError(
            f"config {path}, line {line}, cannot be read: {type(error).__name__}: {error}{advice}"
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"config {path} must assign an EasyDict named `config`")
    return dict(config)


def _parse_override(text: str) -> tuple[str, str, Any]:
    """Key, the part of it that is set ("" for the whole) and value."""
    if len(text) > LONGEST_OVERRIDE:
        raise UserError(
            f"the override {text[:60]!r}... has {len(text)} characters, and at most {LONGEST_OVERRIDE} are read: write "
            "the value in a config file"
        )
    name, separator, value = text.removeprefix("config.").removeprefix("cfg.").partition("=")
    if not separator or not name:
        raise UserError(f"an override is written key=value, without blanks, got {shown(text)}")
    name, _, option = name.partition(".")
    literal = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower(), value)
    try:
        return name, option, ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that the function raises
        return name, option, value


def _understood(keys: dict[str, Key], assigned: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The settings that a file or the command line assigns, under their names here and with their types.

    `UserError` that tells all mistakes at once. What is taken over from a key of another program is logged.
    """
    values: dict[str, Any] = {}
    mistakes, taken, unused = [], [], []
    for written, value in assigned.items():
        name = _own_name(keys, written)
        try:
            own = {name: value} if name in keys else _translated(keys, written, value, source)
            for key, meant in own.items():
                typed = keys[key].checked(meant, source)
                if values.setdefault(key, typed) != typed:
                    raise UserError(
                        f"{source} gives two values for {key!r}, {shown(values[key])} and {shown(typed)}: leave one out"
                    )
        except UserError as error:
            mistakes.append(str(error))
            continue
        if not own:
            unused.append(written)
        elif name not in keys:
            taken.append(f"{written} as {', '.join(f'{key}={meant!r}' for key, meant in own.items())}")
    if mistakes:
        raise UserError("; ".join([mistakes[0], *(text.replace(f" in {source}", "") for text in mistakes[1:])]))
    if taken:
        logger.info("taken from %s: %s", source, "; ".join(taken))
    if unused:
        logger.info("without effect in %s: %s", source, ", ".join(unused))
    return values


def _translated(keys: dict[str, Key], written: str, value: Any, source: str) -> dict[str, Any]:
    """The settings that a key of another program stands for; `UserError` for an unknown one, with the nearest known."""
    try:
        own = translate(_plain(written), value)
    except UserError as error:
        raise UserError(f"config key {written!r} in {source}: {error}") from None
    if own is None or not own.keys() <= keys.keys():
        near = difflib.get_close_matches(_plain(written), keys, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown config key {shown(written)} in {source}{hint} (train.py --help lists all keys)")
    return own


def _own_name(keys: dict[str, Key], written: str) -> str:
    """The key's name, also for one written with capitals or hyphens."""
    return written if written in keys else _plain(written)


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def _is_value(word: str) -> bool:
    """True for the value of the option before it, False for another option, an override or the config."""
    return not (word.startswith("--") or "=" in word or word.endswith(".py"))


def _parts(keys: dict[str, Key], name: str, values: dict[str, Any], override: str) -> dict[str, Any]:
    """The present value of a key whose parts can be set one by one."""
    parts = values.get(name, keys[name].default) if name in keys else None
    if not isinstance(parts, dict):
        raise UserError(f"config key {name!r} in {COMMAND_LINE} has no parts, got {shown(override)}")
    return parts


def _require_meant(key: Key, value: str) -> None:
    """`UserError` that names both places if a path is there below the working directory, but not below the root."""
    below_root, here = resolve(value), Path.cwd() / Path(value).expanduser()
    if os.path.abspath(below_root) == os.path.abspath(here):
        return
    at_root, at_here = map(_exists, (below_root, here))
    if key.path == "output" and not (at_root or at_here):
        at_root, at_here = below_root.parent.is_dir(), here.parent.is_dir()
    if at_here and not at_root:
        raise UserError(
            f"config key {key.name!r} is {value!r}, and paths are relative to the root of the checkout: there is no "
            f"{below_root}, but there is {os.path.abspath(here)}; name that in full if it is meant"
        )
    if at_here and key.path == "input":
        logger.info(
            "%s: %s is used, not %s: paths are relative to the root of the checkout", key.name, below_root, here
        )


def _exists(path: Path) -> bool:
    """True if there is a file, a folder or a pair of record files with this prefix."""
    return path.exists() or Path(f"{path}.rec").exists()
