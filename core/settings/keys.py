"""How a setting is declared, checked and explained.

    lr: float = key(0.1, "for the batch of all ranks as it is", minimum=0)

is a field of a dataclass, which gives the key's name, type, default, range and line of help at once. The annotation may
be `bool`, `int`, `float`, `str`, a `Literal` of the choices, `tuple[...]` of one type, `dict[str, Any]`, or one of
these or None. A value that can be understood in one way alone is taken so: `SGD` for the choice `sgd`, `lfw,cfp_fp` for
a list, `10%` for a number, `yes` for True.
"""

import math
import operator
import re
import textwrap
from collections.abc import Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from core.errors import UserError

__all__ = ["Key", "describe", "key", "key_of", "keys_of", "shown"]

T = TypeVar("T")
COMPARISONS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}
ONE = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    int | float: "a number",
    str: "text",
    dict[str, Any]: "a dict",
    NoneType: "None",
}
MANY = {int: "whole numbers", float: "numbers", int | float: "numbers", str: "names"}
BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
HELP_COLUMN, HELP_WIDTH = 30, 120
MOST_SHOWN = 200
"""Characters of a value in a message."""


def key(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    heading: str = "",
    path: Literal["", "input", "output"] = "",
    synonyms: Mapping[str, Any] | None = None,
    advice: str = "",
) -> T:
    """A field of a settings class. `above` and `below` are the bounds that a value must not reach.

    Bounds are for numbers, also those in a tuple. `heading`: of the group of keys that this one begins. `path`: it
    names a file or folder that is read, or one that may be made. `synonyms`: values that stand for another, by their
    text in small letters without blanks, hyphens and underscores. `advice`: added to the error for a wrong value.
    """
    bounds = {">=": minimum, ">": above, "<=": maximum, "<": below}
    bounds = {sign: bound for sign, bound in bounds.items() if bound is not None}
    metadata = {"help": help, "bounds": bounds, "heading": heading, "path": path}
    metadata |= {"synonyms": dict(synonyms or {}), "advice": advice}
    if isinstance(default, dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def key_of(settings_type: type, name: str, heading: str = "") -> Any:
    """A field of a settings class that is declared in another one: with its default, range and help.

    The annotation must be the same there and here. `heading` replaces that of the other class.
    """
    (declared,) = (each for each in fields(settings_type) if each.name == name)
    metadata = {**declared.metadata, "heading": heading}
    if declared.default_factory is not MISSING:
        return field(default_factory=declared.default_factory, metadata=metadata)
    return field(default=declared.default, metadata=metadata)


@dataclass(frozen=True)
class Key:
    """A declared setting."""

    name: str
    type: Any
    default: Any
    help: str
    bounds: dict[str, float]
    heading: str
    path: str
    synonyms: dict[str, Any]
    advice: str

    @property
    def requirement(self) -> str:
        """What a value must be, for example "a number > 0 and <= 1" or "text or None"."""
        return _in_words(self.type, " and ".join(f"{sign} {bound}" for sign, bound in self.bounds.items()))

    def checked(self, value: Any, source: str) -> Any:
        """`value` as the key's type. `UserError` that names `source` if it has another type or is out of range.

        Numbers are finite and, if whole, within 64 bits, as everything needs them that they are handed to.
        """
        try:
            typed = _converted(self.synonyms.get(_folded(value), value), self.type)
        except (TypeError, ValueError, OverflowError) as error:  # Python writes and converts no endless numbers
            raise self._error(value, source) from error
        numbers = typed if isinstance(typed, tuple) else () if typed is None else (typed,)
        if not all(map(_is_usable, numbers)):
            raise self._error(value, source)
        if not all(COMPARISONS[sign](number, bound) for number in numbers for sign, bound in self.bounds.items()):
            raise self._error(value, source)
        return typed

    def _error(self, value: Any, source: str) -> UserError:
        advice = f"; {self.advice}" if self.advice else ""
        return UserError(f"config key {self.name!r} in {source} must be {self.requirement}, got {shown(value)}{advice}")


def keys_of(settings_type: type) -> dict[str, Key]:
    """The keys of a settings class by name, in the order of their declaration, inherited ones first."""
    types, defaults = get_type_hints(settings_type), settings_type()
    return {
        each.name: Key(each.name, types[each.name], getattr(defaults, each.name), **each.metadata)
        for each in fields(settings_type)
    }


def describe(settings_type: type) -> str:
    """Every key with its default, its help and what a value must be, under the headings of the groups."""
    lines = []
    for each in keys_of(settings_type).values():
        if each.heading:
            lines += ["", each.heading]
        start = f"  {each.name}={each.default}".ljust(HELP_COLUMN - 1) + " "
        text = f"{each.help} ({each.requirement})"
        lines += textwrap.wrap(
            text, HELP_WIDTH, initial_indent=start, subsequent_indent=" " * HELP_COLUMN, break_on_hyphens=False
        )
    return "\n".join(lines).lstrip("\n")


def _converted(value: Any, kind: Any) -> Any:
    """`value` as an instance of the annotation `kind`; `TypeError` if it cannot be understood as one."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for part in parts:
            try:
                return _converted(value, part)
            except TypeError:
                continue
    elif origin is Literal:
        choices = {_folded(part): part for part in parts}
        if isinstance(value, str) and _folded(value) in choices:
            return choices[_folded(value)]
    elif origin is tuple and isinstance(value, str | int | float | list | tuple):
        values = _listed(value)
        kinds = parts[:1] * len(values) if parts[-1] is Ellipsis else parts
        if len(kinds) == len(values):
            return tuple(map(_converted, values, kinds))
    elif origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return dict(value)
    elif kind is bool and _folded(value) in BOOLEANS:
        return BOOLEANS[_folded(value)]
    elif kind is float and type(value) is int:
        return float(value)
    elif kind is float and isinstance(value, str) and re.fullmatch(r"[0-9]*\.?[0-9]+ ?%", value):
        return float(value.rstrip(" %")) / 100
    elif kind is int and type(value) is float and value.is_integer():
        return int(value)
    elif type(value) is kind and not (kind is str and "\0" in value):
        return value
    raise TypeError(f"{value!r} is not of type {kind}")


def _is_usable(value: Any) -> bool:
    """True for what is no number, and for a number that is finite and within 64 bits."""
    return math.isfinite(value) if isinstance(value, float) else not isinstance(value, int) or abs(value) < 1 << 63


def shown(value: Any) -> str:
    """A value as Python writes it, cut short for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of whole numbers of thousands of digits
        text = f"a {type(value).__name__} beyond all bounds"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _folded(value: Any) -> str:
    """The text of a value in small letters, without the blanks, hyphens and underscores in it."""
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", str(value).strip()).lower()


def _listed(value: str | float | list | tuple) -> list:
    """The entries of a list; of a text such as "lfw,cfp_fp" or "[lfw, cfp_fp]" the names in it."""
    if isinstance(value, str):
        return re.findall(r"[^\s,()\[\]'\"]+", value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _in_words(kind: Any, bounds: str) -> str:
    """The values of an annotation within bounds such as ">= 0"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        *others, last = map(repr, parts)
        return f"{', '.join(others)} or {last}"
    if origin is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"a list of {count}{MANY[parts[0]]} {bounds}".rstrip()
    if kind in ONE:
        return ONE[kind] if kind is NoneType else f"{ONE[kind]} {bounds}".rstrip()
    return " or ".join(_in_words(part, bounds) for part in parts)
