"""Objects from plain specs: `{"type": "multi_block", "num_blocks": 8}` in YAML or JSON names a class and its settings.

Solvers, costs, constraints and mask samplers are built and saved this way. Each kind has its own key for the name:
"solver", "cost", "constraint", "type".
"""

import dataclasses
import difflib
import functools
import logging
from collections.abc import Iterable
from typing import Any


logger = logging.getLogger(__name__)


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
    check_known(str(name), classes, kind)
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
