"""Profile of a call by operator, and the fraction of the machine's sgemm rate that its matrix products reach."""

import time
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
# The operators with matrix products, as a reader calls them
PRODUCTS = {
    "aten::addmm": "linear layers, forward",
    "aten::mm": "linear layers, backward (or bias apart)",
    ATTENTION: "attention, forward",
    f"{ATTENTION}_backward": "attention, backward",
    "aten::bmm": "attention, products apart",
}
NAMED_SHARE = 0.01  # operators below it are summed up


class OperatorClock(TorchDispatchMode):
    """CPU time, calls and needed operations of every operator that runs within it. torch's profiler measures wall
    time only, which depends on other processes."""

    def __init__(self):
        super().__init__()
        self.rows: dict[str, dict[str, Any]] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        started = time.process_time()
        result = operator(*args, **(kwargs or {}))
        taken = time.process_time() - started
        key = operator._schema.name
        name = PRODUCTS.get(key, key)
        row = self.rows.setdefault(name, {"operator": name, "seconds": 0.0, "calls": 0, "operations": 0})
        row["seconds"] += taken
        row["calls"] += 1
        row["operations"] += product_operations(key, [getattr(each, "shape", ()) for each in args])
        return result


def profile_operators(run: Callable[[], Any], seconds: float, sgemm_rate: float) -> list[dict[str, Any]]:
    """Profiles one call; its operators by their fraction of the time, largest first.

    Args:
        run: the call.
        seconds: CPU time of the call without the profiler; converts fractions to seconds.
        sgemm_rate: operations per second of the machine's best matrix product.

    Returns:
        Rows with `operator`, `share` (fraction of the operators' CPU time, 0 to 1), `calls`, and, for matrix products,
        `fraction_of_sgemm`: the time that the operations needed would take at `sgemm_rate`, over the time taken.
        Attention's backward needs twice the operations of its forward; the fused kernel computes the scores again,
        which counts nothing.
    """
    with OperatorClock() as clock:
        run()
    whole = sum(row["seconds"] for row in clock.rows.values())
    rows = []
    for row in clock.rows.values():
        share, operations = row.pop("seconds") / whole, row.pop("operations")
        row["share"] = share
        if operations:
            row["fraction_of_sgemm"] = operations / sgemm_rate / (share * seconds)
        rows.append(row)
    rows.sort(key=lambda row: -row["share"])
    named = [row for row in rows if row["share"] >= NAMED_SHARE or "fraction_of_sgemm" in row]
    rest = [row for row in rows if row not in named]
    others = {key: sum(row[key] for row in rest) for key in ("share", "calls")}
    return [*named, {"operator": f"{len(rest)} others", **others}]


def product_operations(operator: str, shapes: list[list[int]]) -> int:
    """Operations (a multiply-add is 2) that a call of an operator with these input shapes needs."""
    if operator in ("aten::mm", "aten::addmm"):
        left, right = shapes[:2] if operator == "aten::mm" else shapes[1:3]
        return 2 * left[0] * left[1] * right[1]
    if operator == "aten::bmm":
        return 2 * shapes[0].numel() * shapes[1][2]
    if operator in (ATTENTION, f"{ATTENTION}_backward"):
        backward = operator != ATTENTION  # its first input is the output's gradient
        (batch, heads, tokens, channels), key = shapes[backward], shapes[backward + 1]
        return (8 if backward else 4) * batch * heads * tokens * key[2] * channels
    return 0
