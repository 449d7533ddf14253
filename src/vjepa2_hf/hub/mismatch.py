"""Differences between the weights of a file and those that its settings expect, by name and shape.

A wrong depth changes hundreds of tensors. The description names it once, and lists only what depth, width and levels
do not explain.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch


Shapes = Mapping[str, tuple[int, ...] | None]  # `None`: a shape that is not known

LISTED = 12  # groups of tensors in one description
_STACKS = re.compile(r"(?:^|.*\.)(blocks|predictor_blocks|layer|norms_block|level_norms|mask_tokens)(?=\.\d+(\.|$))")
_NOUNS = {"norms_block": "levels", "level_norms": "norms of earlier levels", "mask_tokens": "mask tokens"}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of a state dict."""
    return {name: tuple(value.shape) for name, value in state.items()}


def describe_mismatch(found: Mapping[str, Shapes], expected: Mapping[str, Shapes]) -> str | None:
    """What differs, as clauses for one sentence; `None` if names and shapes agree.

    Args:
        found: shapes by name of the file, by part. A part called "" is not named in the text.
        expected: the same of the settings; other parts of the file are ignored.
    """
    sizes, groups, ratios = [], {}, {Fraction(1)}
    for part, wanted in expected.items():
        sizes += _sizes(part, found.get(part, {}), wanted, ratios)
    for part, wanted in expected.items():
        for name, fault in _faults(found.get(part, {}), wanted, ratios):
            groups.setdefault((_NUMBER.sub("*", name), part, fault), []).append(name)
    clauses = [*sizes]
    for (pattern, part, fault), names in groups.items():
        one = names[0] if len(names) == 1 else f"{pattern} ({len(names)} tensors)"
        clauses.append(f"{one}{f' of {part!r}' if part else ''} {fault}")
    more = len(clauses) - LISTED
    return "; ".join(clauses[:LISTED]) + (f"; and {more} more" if more > 0 else "") or None


def describe_loading(model: torch.nn.Module, info: Mapping[str, Any]) -> str | None:
    """The same from what transformers' `from_pretrained` reports (`output_loading_info`)."""
    expected: dict[str, Any] = shapes_of(model.state_dict())
    found = {name: shape for name, shape in expected.items() if name not in info["missing_keys"]}
    found |= dict.fromkeys(info["unexpected_keys"])
    found |= {name: tuple(shape) for name, shape, _ in info["mismatched_keys"]}
    return describe_mismatch({"": found}, {"": expected})


def _sizes(part: str, found: Shapes, expected: Shapes, ratios: set[Fraction]) -> list[str]:
    """Clauses about depth, levels, width and MLP of a part; what follows from them is added to `ratios`."""
    clauses = []
    for stack in dict.fromkeys(stack for name in (*expected, *found) if (stack := _stack_of(name))):
        word = stack.rpartition(".")[2]
        noun = _NOUNS.get(word, "blocks")
        where = repr(part) if part else stack.rpartition(".")[0] or "the model"
        field = _field(f"{part}.{stack}", noun)
        counts = [len(_numbers(names, stack)) for names in (found, expected)]
        if counts[0] != counts[1]:
            number = f"{counts[0]} {noun.removesuffix('s') if counts[0] == 1 and ' of ' not in noun else noun}"
            clauses.append(f"{where} has {number}, not {counts[1]} ({field[0]})")
            if noun == "levels":
                ratios.update(_ratio(*counts) * other for other in list(ratios))
        widths = [names.get(f"{stack}.0.norm1.weight") for names in (found, expected)]
        if all(widths) and widths[0] != widths[1]:
            clauses.append(f"{where} is {widths[0][0]} wide, not {widths[1][0]} ({field[1]})")
            ratios.update(_ratio(widths[0][0], widths[1][0]) * other for other in list(ratios))
        heights = [names.get(f"{stack}.0.mlp.fc1.weight") for names in (found, expected)]
        if all(heights):
            mlp = [_ratio(height, width) for height, width in heights]
            if abs(mlp[0] - mlp[1]) * min(width for _, width in heights) >= 1:  # a height is rounded to less
                clauses.append(f"{where} has MLP ratio {float(mlp[0]):.4g}, not {float(mlp[1]):.4g} ({field[2]})")
            ratios.add(_ratio(heights[0][0], heights[1][0]))
    return clauses


def _faults(found: Shapes, expected: Shapes, ratios: set[Fraction]):
    """Names and faults of a part's tensors that its depth, levels and width do not explain."""
    numbers = {stack: [_numbers(names, stack) for names in (found, expected)] for stack in _stacks(found, expected)}
    for name in dict.fromkeys([*expected, *found]):
        stack, shapes = _stack_of(name), (found.get(name), expected.get(name))
        if name not in found or name not in expected:
            number = stack and name.removeprefix(f"{stack}.").partition(".")[0]
            if not stack or all(number in present for present in numbers[stack]):
                yield name, "is missing" if name not in found else "is not expected"
        elif None not in shapes and shapes[0] != shapes[1] and not _follows(*shapes, ratios):
            yield name, f"has shape {shapes[0]}, not {shapes[1]}"


def _follows(found: tuple[int, ...], expected: tuple[int, ...], ratios: set[Fraction]) -> bool:
    """Whether a shape differs only as the sizes that are already named."""
    return len(found) == len(expected) and all(_ratio(*pair) in ratios for pair in zip(found, expected, strict=True))


def _ratio(found: int, expected: int) -> Fraction:
    return Fraction(found, expected) if expected else Fraction(0)


def _stack_of(name: str) -> str | None:
    match = _STACKS.match(name)
    return match and match[0]


def _stacks(*states: Shapes) -> set[str]:
    return {stack for state in states for name in state if (stack := _stack_of(name))}


def _numbers(names: Shapes, stack: str) -> set[str]:
    below = (name.removeprefix(f"{stack}.") for name in names if name.startswith(f"{stack}."))
    return {name.partition(".")[0] for name in below}


def _field(path: str, noun: str) -> tuple[str, str, str]:
    """The config's fields for the number of these, for their width and for their MLP."""
    if "predictor" in path:
        depth, *others = "predictor_num_hidden_layers", "predictor_hidden_size", "predictor_mlp_ratio"
    elif "pooler" in path:
        depth, *others = "num_pooler_layers", "hidden_size", "pooler_mlp_ratio"
    else:
        depth, *others = "num_hidden_layers", "hidden_size", "mlp_ratio"
    return "output_levels" if "levels" in noun else "num_mask_tokens" if "mask" in noun else depth, *others
