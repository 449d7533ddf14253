"""Dataclasses of settings that check their fields by their annotations, from Python as from YAML."""

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from typing import Any, Literal

import numpy as np

from ..specs import as_number, is_integer, refuse


def check_fields(instance: Any, prefix: str = "") -> None:
    """Checks the fields of a dataclass by their annotations; see `check_field`. For its `__post_init__`."""
    for field in dataclasses.fields(instance):
        check_field(instance, field.name, prefix)


def check_field(instance: Any, name: str, prefix: str = "") -> None:
    """Checks a field of a dataclass by its annotation, and stores what JSON, YAML and numpy write otherwise (a list
    for a tuple, a numpy number) as annotated. NaN is no number. `prefix` stands before the name in the error."""
    hint, value = _hints(type(instance))[name], getattr(instance, name)
    fitted = _fitted(hint, value)
    if not fitted:
        refuse(prefix + name, value, _expected(hint))
    if fitted[0] is not value:
        object.__setattr__(instance, name, fitted[0])


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fitted(hint: Any, value: Any) -> tuple:
    """(the value as annotated,), or () if it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, (_fitted(each, value) for each in arguments)), ())
    if origin is Literal:
        return (value,) if any(type(value) is type(each) and value == each for each in arguments) else ()
    if hint is int:
        return (int(value),) if is_integer(value) else ()
    if hint is float:
        number = as_number(value)
        return () if number is None or math.isnan(number) else (value if type(value) is type(number) else number,)
    if hint is bool:
        return (bool(value),) if isinstance(value, (bool, np.bool_)) else ()
    if origin in (tuple, list, collections.abc.Sequence):
        return _fitted_items(origin, arguments, value)
    if isinstance(origin or hint, type):
        return (value,) if isinstance(value, origin or hint) else ()
    return (value,)  # Any


def _fitted_items(origin: Any, arguments: tuple, value: Any) -> tuple:
    if not isinstance(value, (list, tuple)):
        return ()
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        return ()
    items = [_fitted(hint, item) for hint, item in zip(arguments if fixed else arguments[:1] * len(value), value)]
    if not all(items):
        return ()
    same = isinstance(value, origin) and all(item is old for (item,), old in zip(items, value))
    return (value if same else (tuple if origin is tuple else list)(item for (item,) in items),)


def _expected(hint: Any) -> str:
    """An annotation in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if origin is tuple and Ellipsis not in arguments:
        return f"({', '.join(map(_expected, arguments))})"
    if origin in (tuple, list, collections.abc.Sequence):
        return f"a list, each {_expected(arguments[0])}"
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text", types.NoneType: "None"}
    return words.get(hint) or f"a {getattr(hint, '__name__', hint)}"
