"""Checks of settings and arguments, and objects from plain specs.

A check returns the value as it is to be stored, or raises a ValueError that names the value and what was expected. No
check reads the numbers of a tensor.

A spec such as `{"type": "multi_block", "num_blocks": 8}` in YAML or JSON names a class and its settings. Solvers,
costs, constraints and mask samplers are built and saved this way. Each kind has its own key for the name: "solver",
"cost", "constraint", "type".
"""

import dataclasses
import difflib
import functools
import logging
import math
import numbers
import os
import reprlib
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, get_args, get_origin

import numpy as np
import torch
from huggingface_hub.dataclasses import strict


logger = logging.getLogger(__name__)

LARGEST_COUNT = 2**31 - 1
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12
_SHORT.maxlevel = 3


# --- Checks


def describe(value: Any) -> str:
    """A value in an error: its repr, shortened; of a tensor or array type, shape and dtype."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    """Raises a ValueError that names the setting, its value and what was expected."""
    raise ValueError(f"{name} is {describe(value)}; expected {expected}.")


def is_integer(value: Any) -> bool:
    """Whether it is an integer, also a numpy one; no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number that fits a float; no bool."""
    return as_number(value) is not None


def check_count(name: str, value: Any, lowest: int = 1, highest: int = LARGEST_COUNT) -> int:
    """An integer from `lowest` to `highest`, also a numpy one; no bool and no float."""
    if not is_integer(value) or not lowest <= value <= highest:
        refuse(name, value, f"an integer from {lowest} to {highest}")
    return int(value)


def check_number(
    name: str,
    value: Any,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
) -> int | float:
    """A number within bounds, also a numpy one; never NaN, and infinite only with `finite=False`."""
    bounds = {"above": above, "of at least": at_least, "below": below, "of at most": at_most}
    number = as_number(value)
    if (
        number is None
        or math.isnan(number)
        or (finite and math.isinf(number))
        or (above is not None and not number > above)
        or (at_least is not None and not number >= at_least)
        or (below is not None and not number < below)
        or (at_most is not None and not number <= at_most)
    ):
        given = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        refuse(name, value, " ".join(filter(None, ("a finite number" if finite else "a number", given))))
    return number


def as_number(value: Any) -> int | float | None:
    """A Python number from a real one that fits a float (an integer of more than 53 bits as a float); `None` for
    anything else."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        as_float = float(value)
    except OverflowError:
        return None
    return int(value) if isinstance(value, numbers.Integral) and abs(as_float) < 2**53 else as_float


def check_fraction(name: str, value: Any) -> int | float:
    """A number from 0 to 1."""
    return check_number(name, value, at_least=0, at_most=1)


def check_flag(name: str, value: Any) -> bool:
    """True or False, also numpy's; no number and no text."""
    if not isinstance(value, (bool, np.bool_)):
        refuse(name, value, "True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable) -> None:
    """One of `choices`, of the same type."""
    choices = list(choices)
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        refuse(name, value, f"one of {', '.join(map(repr, choices))}")


def check_tensor(name: str, value: Any, *shapes: str, floating: bool = True) -> torch.Tensor:
    """A tensor with the number of dimensions of one of `shapes`, such as "(B, T, N, D)", none of them 0.

    Args:
        shapes: without one, any; "..." stands for any number of dimensions, "(..., N, D)".
        floating: floats are needed; `False`: any numbers.
    """
    wanted = " ".join(["a float tensor" if floating else "a tensor", *filter(None, [" or ".join(shapes)])])
    if not isinstance(value, torch.Tensor) or (floating and not value.is_floating_point()) or value.is_complex():
        refuse(name, value, wanted)
    fits = [value.ndim == s.count(",") + 1 or "..." in s and value.ndim >= s.count(",") for s in shapes]
    if shapes and not any(fits) or 0 in value.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {wanted}, none of the sizes 0.")
    return value


def as_settings(name: str, value: Any, kind: type) -> Any:
    """An object of the settings class `kind`; `None`: its defaults."""
    if value is not None and not isinstance(value, kind):
        refuse(name, value, f"a {kind.__name__}, such as {kind.__name__}({dataclasses.fields(kind)[0].name}=…)")
    return value or kind()


def check_generator(name: str, value: Any) -> None:
    """A `torch.Generator`, or `None`."""
    if value is not None and not isinstance(value, torch.Generator):
        refuse(name, value, "a torch.Generator, or None")


# --- Configurations


def check(condition: bool, message: str) -> None:
    """Raises a ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_numbers(config: Any, positive: str = "", not_negative: str = "") -> None:
    """Checks the fields with these names, separated by spaces; `None` passes."""
    for name in positive.split():
        value = getattr(config, name)
        check(value is None or 0 < value <= LARGEST_COUNT, f"{name} is {describe(value)}; expected a number above 0.")
    for name in not_negative.split():
        value = getattr(config, name)
        check(value is None or 0 <= value <= LARGEST_COUNT, f"{name} is {describe(value)}; expected 0 or more.")


def check_heads(size_name: str, size: int, heads_name: str, heads: int) -> None:
    """Checks that the number of heads divides the size; both are named as the fields that hold them."""
    check(heads > 0 and size % heads == 0, f"{heads_name}={heads} must divide {size_name}={size}: choose another.")


def strict_config(cls: type) -> type:
    """`@strict`, which checks types, with one more rule: a value that a `Literal` does not list is a `ValueError`."""
    cls = strict(cls)
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    choices = {name: get_args(kind) for name, kind in types.items() if get_origin(kind) is Literal}
    set_checked = cls.__setattr__

    def __setattr__(self, name: str, value: Any) -> None:
        if name in choices:
            check_choice(name, value, choices[name])
        set_checked(self, name, value)

    cls.__setattr__ = __setattr__
    return cls


def refuse_missing_folder(path: str | os.PathLike) -> None:
    """Refuses a local folder that does not exist, which transformers would look for on the Hub."""
    name = os.fspath(path)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep != "/" and os.sep in name
    looks_local |= name.rpartition("/")[2].startswith("checkpoint-")  # of a run
    if (looks_local or isinstance(path, os.PathLike)) and not os.path.exists(name):
        raise FileNotFoundError(f"There is no folder {name!r}; give the path of a saved model, or a Hub id.")


# --- Specs


def check_known(name: str, known: Iterable[str], kind: str, prefix: str = "") -> None:
    """Refuses a name that is not in `known` with a ValueError that suggests the nearest known one.

    Args:
        kind: what is named, for the error: "key", "solver", …
        prefix: stands before the names in the error, with its dot.
    """
    known = list(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix + nearest[0]!r}?" if nearest else f"known ones are {', '.join(sorted(known))}."
    raise ValueError(f"Unknown {kind} {prefix + name!r}; {hint}")


def check_at_least(settings: Any, prefix: str = "", **lowest: float) -> None:
    """Raises a ValueError for the first attribute of `settings` below its lowest value; None is allowed."""
    for name, bound in lowest.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"{prefix}{name} must be at least {bound}, got {value}.")


def from_spec(spec: Any, classes: dict[str, type], key: str) -> Any:
    """Builds an object of one of the dataclasses `classes` from its spec, `{key: name, **settings}`.

    Errors call the object by the key ("mask" for "type", which only masks use).

    Raises:
        ValueError: the spec has another form, or the name or a setting is unknown, missing or out of its range.
    """
    kind = "mask" if key == "type" else key
    if not isinstance(spec, dict) or key not in spec:
        raise ValueError(f"{kind} is {spec!r}; expected a dict with {key!r}, one of {', '.join(classes)}.")
    settings = dict(spec)
    name = settings.pop(key)
    if not isinstance(name, str):
        refuse(kind, name, f"one of {', '.join(classes)}")
    check_known(name, classes, kind)
    known = [field.name for field in dataclasses.fields(classes[name])]
    for setting in settings:
        check_known(str(setting), known, f"{kind} setting", f"{name}.")
    try:
        return classes[name](**settings)
    except TypeError as error:  # a required setting is missing, or has a type that cannot be compared
        raise ValueError(f"{kind} {spec!r} cannot be built: {error}.") from error


def read_old_names(settings: dict[str, Any], new_names: dict[str, str], source: str) -> dict[str, Any]:
    """Saved settings of `source` with the names of today; a warning is logged once for each old name."""
    for old in settings.keys() & new_names.keys():
        _warn_once(f"{source}: the setting {old!r} is now called {new_names[old]!r}; save again to update it.")
    return {new_names.get(name, name): value for name, value in settings.items()}


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def to_spec(instance: Any, classes: dict[str, type], key: str) -> dict[str, Any]:
    """The spec that `from_spec` builds an equal object from."""
    name = next((name for name, kind in classes.items() if kind is type(instance)), None)
    if name is None:
        raise ValueError(f"the {key} {instance!r} is none of {', '.join(classes)}, so it cannot be saved.")
    return {key: name, **dataclasses.asdict(instance)}
