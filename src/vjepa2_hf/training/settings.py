"""A script's settings: YAML and `key=value` into dataclasses, the command line, errors in one sentence.

    config = parse_arguments(PretrainConfig, __doc__)            # --config FILE key=value ...

Names and types are checked against the dataclass; a ValueError of one sentence names a wrong key or value.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import logging
import os
import re
import sys
import textwrap
import time
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from huggingface_hub.errors import StrictDataclassError

from ..specs import check_known
from .failures import explain_failure


logger = logging.getLogger(__name__)

ConfigType = TypeVar("ConfigType")
FAILURE_SECONDS = 1.0
USER_ERRORS = (ValueError, OSError, StrictDataclassError)
# In an installed wheel the configs lie in the package, in a clone in examples/
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = (_PACKAGE / "scripts" if (_PACKAGE / "scripts").is_dir() else _PACKAGE.parents[1] / "examples") / "configs"


_LARGEST_YAML = 100_000  # values, with those of aliases counted as often as they are used
_DEEPEST_YAML = 50
_YAML_1_1 = [f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")]


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.2 numbers: PyYAML reads `1e-3` as a string, which is how learning rates are written, `1:30` as 90, `010`
    as 8 and `2026-01-31` as a date."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_1]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _YamlDumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as a string."""


_FLOAT = re.compile(
    r"^([-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
    r"|\.(nan|NaN|NAN))$"
)
_YamlLoader.add_implicit_resolver(
    _YAML_1_1[0], re.compile(r"^[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)
for _kind in (_YamlLoader, _YamlDumper):
    _kind.add_implicit_resolver(_YAML_1_1[1], _FLOAT, list("-+.0123456789"))


def load_config(
    config_class: type[ConfigType],
    path: str | os.PathLike | None = None,
    overrides: Iterable[str] = (),
) -> ConfigType:
    """Builds a config dataclass from a YAML file and `key=value` overrides, and checks names and types.

    Args:
        config_class: a dataclass; fields may be dataclasses, `dict`, `list[...]`, unions and `Literal`s.
        path: a YAML file, or a shipped config by name, as `demo/pretrain`; None starts from the dataclass's defaults.
        overrides: keys go into dataclasses, dicts and lists with dots (`encoder.hidden_size=96`,
            `masks.0.num_blocks=4`); values are read as YAML (`resume=null`, `aspect_ratio=[0.75, 1.5]`).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: not YAML, an unknown key (with the nearest known one), a missing or wrongly typed value.
    """
    values = read_yaml(find_config(path)) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    for old, new in getattr(config_class, "renamed_settings", {}).items():
        if old in values:
            _warn_of_old_name(old, new)
            values[new] = values.pop(old)
    return _build(config_class, values, prefix="")


def find_config(path: str | os.PathLike) -> Path:
    """The file `path`, or, where there is none, the shipped config of that name: `demo/pretrain`."""
    path, name = Path(path), Path(path).as_posix().removeprefix("examples/configs/").removesuffix(".yaml")
    if path.is_file():
        return path
    shipped = {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in sorted(CONFIGS.rglob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=3) or [one for one in shipped if one.startswith("demo/")]
    raise FileNotFoundError(
        f"The config file {str(path)!r} does not exist; give the path of a YAML file, or a shipped config by name: "
        f"{', '.join(near)}, …"
    )


@functools.cache  # once per name
def _warn_of_old_name(old: str, new: str) -> None:
    logger.warning("The setting %r is now called %r; please use the new name.", old, new)


def parse_arguments(config_class: type[ConfigType], description: str, argv: list[str] | None = None) -> ConfigType:
    """The command line of every script: `--config FILE [key=value ...]` into a config (see `load_config`).

    `--help` lists the keys with their types and defaults, from the dataclass.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "keys:\n" + "\n".join(f"  {line}" for line in describe_keys(config_class))
    parser.add_argument("--config", metavar="FILE", help="YAML file, or a shipped config by name (demo/pretrain)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    arguments = parser.parse_args(argv)
    return load_config(config_class, arguments.config, arguments.overrides)


def describe_keys(config_class: type, prefix: str = "", values: Any = None) -> Iterator[str]:
    """A line per key of a config dataclass, also nested ones: name, type, default (that of the instance `values` if
    there is one), and the string below the field."""
    hints, docs = typing.get_type_hints(config_class), _field_docs(config_class)
    for field in dataclasses.fields(config_class):
        hint, key = hints[field.name], prefix + field.name
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = default if values is None else getattr(values, field.name)
        nested = next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        inner = default if dataclasses.is_dataclass(default) else None
        line = f"{key}: {_type_name(hint)}"
        if default is dataclasses.MISSING:
            line += " (required)"
        elif inner is None:
            line += f" = {json.dumps(default, default=str)}"
        yield line + (f"   # {docs[field.name]}" if field.name in docs else "")
        if nested:
            yield from describe_keys(nested, key + ".", inner)


def _field_docs(config_class: type) -> dict[str, str]:
    """The strings below the fields of a class, which Python does not keep."""
    inherited = _field_docs(config_class.__base__) if dataclasses.is_dataclass(config_class.__base__) else {}
    try:
        source = inspect.getsource(config_class)
    except (OSError, TypeError):  # a class of an interactive session has no file
        return inherited
    body = ast.parse(textwrap.dedent(source)).body[0].body
    return inherited | {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    }


def exit_on_user_error(function: Callable) -> Callable:
    """Decorates a `main`: a user's error, or a failure of the machine, ends in one sentence on stderr and exit code 1,
    Ctrl-C in exit code 130. The traceback is logged at DEBUG level."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except USER_ERRORS as error:
            logger.debug("the error that ended the program", exc_info=True)
            sys.stderr.write(f"error: {one_sentence(error)}\n")
            sys.exit(1)
        except (RuntimeError, MemoryError) as error:
            sentence = explain_failure(error)
            if sentence is None:
                raise
            time.sleep(FAILURE_SECONDS)  # a signal that has ended another process is on its way to this one
            logger.debug("the error that ended the program", exc_info=True)
            sys.stderr.write(f"error: {sentence}\n")
            sys.exit(1)
        except KeyboardInterrupt:
            logger.debug("where the program was interrupted", exc_info=True)
            sys.stderr.write("error: interrupted by the user; results saved so far stay.\n")
            sys.exit(130)

    return wrapper


def refuse_missing_model(model: str) -> None:
    """Raises a FileNotFoundError if a script's MODEL is neither a folder nor looks like a Hub id."""
    if not os.path.isdir(model) and model.count("/") != 1:
        raise FileNotFoundError(f"There is no model at {model!r}; give a folder or a Hub id.")


def one_sentence(error: BaseException) -> str:
    """The text of an error on one line; for an error inside a DataLoader worker, its last line."""
    text = str(error)
    if "Original Traceback (most recent call last)" in text:
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", text.strip().splitlines()[-1])
    return " ".join(text.split())


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The keys and values of a config file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The config file {str(path)!r} does not exist; give the path of a YAML file.")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"The config file {str(path)!r} is not UTF-8 text ({error}); save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"The config file {str(path)!r} is not valid YAML: {one_sentence(error)}") from error
    if not isinstance(values, dict | None):
        raise ValueError(
            f"The config file {str(path)!r} holds a {type(values).__name__}; expected `key: value` lines."
        )
    return values or {}


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: a key is given twice, or the value is nested too deeply or too large with its aliases expanded.
        yaml.YAMLError: it is not YAML.
    """
    loader = _YamlLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, {}, [])
        return loader.construct_document(node)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {_DEEPEST_YAML} levels.") from error
    finally:
        loader.dispose()


def dump_yaml(values: Any) -> str:
    """A text that `parse_yaml` reads as these values."""
    return yaml.dump(values, Dumper=_YamlDumper, sort_keys=False)


def _check_node(node: yaml.Node, sizes: dict[int, int], above: list[yaml.Node]) -> int:
    """The number of values in a node, with aliases expanded. Refuses one that is too large or holds a key twice."""
    if id(node) in sizes:
        return sizes[id(node)]
    line = node.start_mark.line + 1
    if any(node is one for one in above):
        raise ValueError(f"the value in line {line} holds itself.")
    if len(above) > _DEEPEST_YAML:
        raise ValueError(f"it is nested deeper than {_DEEPEST_YAML} levels.")
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name = (key.tag, key.value)
            if name in lines and key.value != "<<":
                found = f"in lines {lines[name]} and {key.start_mark.line + 1}"
                raise ValueError(f"the key {key.value!r:.80} is given twice, {found}; remove one.")
            lines[name] = key.start_mark.line + 1
        parts = [part for pair in node.value for part in pair]
    size = 1 + sum(_check_node(part, sizes, [*above, node]) for part in parts)
    if size > _LARGEST_YAML:
        raise ValueError(f"it holds more than {_LARGEST_YAML} values.")
    sizes[id(node)] = size
    return size


def _shown(value: Any) -> str:
    """A value in an error, of bounded length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Sets one `a.b.c=value` in the nested dicts and lists read from YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"The argument {_shown(override)} is not of the form key=value, like `max_steps=100`.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the argument {_shown(override)} is not valid YAML; quote it.") from error
    except ValueError as error:
        raise ValueError(f"The value of the argument {_shown(override)} is refused: {error}") from error
    if key.count(".") >= _DEEPEST_YAML:
        raise ValueError(f"The key of the argument {_shown(override)} is nested deeper than {_DEEPEST_YAML} levels.")
    names, node = key.split("."), values
    for position, name in enumerate(names):
        if isinstance(node, list) and name.isdigit() and int(name) < len(node):
            name = int(name)
        elif not isinstance(node, dict):
            have = f"the single value {_shown(node)}"
            if isinstance(node, list):
                have = f"a list of {len(node)}, counted from 0"
            path, parent = ".".join(names[: position + 1]), ".".join(names[:position])
            raise ValueError(f"The key {path!r} does not exist: {parent!r} is {have}.")
        if position == len(names) - 1:
            node[name] = value
        elif isinstance(node, dict) and node.get(name) is None:
            node[name] = {}
        node = node[name]


def _build(config_class: type[ConfigType], values: Any, prefix: str) -> ConfigType:
    if not isinstance(values, dict):
        raise ValueError(f"The key {prefix[:-1]!r} must hold `key: value` lines, got {_shown(values)}.")
    known = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    for name in values:
        check_known(str(name), known, "key", prefix)
    hints = typing.get_type_hints(config_class)
    arguments = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    for name, field in known.items():
        if name not in arguments and field.default is field.default_factory is dataclasses.MISSING:
            key = prefix + name
            raise ValueError(f"The key {key!r} is missing; set it in the config file or as `{key}=...`.")
    return config_class(**arguments)


def replace_values(config: ConfigType, values: dict[str, Any], prefix: str = "") -> ConfigType:
    """A copy of a config with some values replaced, whose types are checked; `prefix` stands before their names."""
    hints = typing.get_type_hints(type(config))
    converted = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
    return dataclasses.replace(config, **converted)


def _convert(expected: Any, value: Any, key: str) -> Any:
    """`value` as the type `expected` of its field."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, key)
    if origin is Literal:
        if value in arguments:
            return value
        if value is False and "no" in arguments:  # how YAML reads a bare no
            return "no"
        raise ValueError(f"The key {key!r} must be one of {', '.join(map(repr, arguments))}, got {_shown(value)}.")
    if dataclasses.is_dataclass(expected):
        return _build(expected, value, key + ".")
    if origin in (list, tuple) and isinstance(value, list):
        item_types = arguments if origin is tuple and Ellipsis not in arguments else arguments[:1] * len(value)
        if len(item_types) == len(value):
            return origin(_convert(*pair, f"{key}.{i}") for i, pair in enumerate(zip(item_types, value)))
    if origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**1023:
            raise ValueError(f"The key {key!r} must be a number, got an integer of {value.bit_length()} bits.")
        return float(value)
    kind = origin or expected
    # A bool is an int in Python, but `seed: true` is a mistake
    if kind is Any or (isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool))):
        return value
    kind = type(value).__name__
    raise ValueError(f"The key {key!r} must be {_type_name(expected)}, got {_shown(value)} of type {kind}.")


def _convert_union(alternatives: tuple, value: Any, key: str) -> Any:
    if value is None and types.NoneType in alternatives:
        return None
    alternatives, errors = [kind for kind in alternatives if kind is not types.NoneType], []
    for alternative in alternatives:
        try:
            return _convert(alternative, value, key)
        except ValueError as error:
            errors.append(error)
    # An error inside a list or dict says more than that the value fits no alternative
    inside = [error for error in errors if not str(error).startswith(f"The key {key!r} must")]
    if inside or len(errors) == 1:
        raise (inside or errors)[0]
    names = " or ".join(map(_type_name, alternatives))
    raise ValueError(f"The key {key!r} must be {names}, got {_shown(value)} of type {type(value).__name__}.")


def _type_name(expected: Any) -> str:
    """A type in terms of YAML: `int | null`, `"a" | "b"`."""
    if expected is types.NoneType:
        return "null"
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_name, arguments))
    if origin is Literal:
        return " | ".join(map(json.dumps, arguments))
    return expected.__name__ if isinstance(expected, type) and not arguments else str(expected).replace("typing.", "")
