"""Where the time of a call goes, by operator, and how near its matrix products come to the machine's sgemm."""

import time
from collections.abc import Callable
from typing import Any

import torch


ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
# The operators with matrix products, as a reader calls them
PRODUCTS = {
    "aten::addmm": "linear layers, forward",
    "aten::mm": "linear layers, backward",
    ATTENTION: "attention, forward",
    f"{ATTENTION}_backward": "attention, backward",
}
NAMED_SHARE = 0.01  # operators below it are summed up


def profile_operators(run: Callable[[], Any], seconds: float, sgemm_rate: float) -> dict[str, Any]:
    """Profiles one call; its operators by their share of the time, largest first.

    Args:
        run: the call.
        seconds: of CPU that it takes when nothing profiles it; shares are turned to seconds with it.
        sgemm_rate: operations a second of the machine's best matrix product.

    Returns:
        `wall_over_cpu` of the profiled call: the profiler measures wall time, and far above 1 others had the core and
        the shares mean little. `operators`: rows with `operator`, `share` of the time (0 to 1), `calls`, and, for
        matrix products, `fraction_of_sgemm`: the time that the operations needed would take at `sgemm_rate`, over the
        time taken. Attention's backward needs twice the operations of its forward; the fused kernel computes the
        scores again, which counts nothing.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found: dict[str, dict[str, Any]] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        name = PRODUCTS.get(event.key, event.key)
        row = found.setdefault(name, {"operator": name, "microseconds": 0.0, "calls": 0, "operations": 0})
        row["microseconds"] += event.self_cpu_time_total
        row["calls"] += event.count
        row["operations"] += event.count * product_operations(event.key, event.input_shapes)
    whole = sum(row["microseconds"] for row in found.values())
    rows = []
    for row in found.values():
        share, operations = row.pop("microseconds") / whole, row.pop("operations")
        row["share"] = share
        if operations:
            row["fraction_of_sgemm"] = operations / sgemm_rate / (share * seconds)
        rows.append(row)
    rows.sort(key=lambda row: -row["share"])
    named = [row for row in rows if row["share"] >= NAMED_SHARE or "fraction_of_sgemm" in row]
    rest = [row for row in rows if row not in named]
    others = {key: sum(row[key] for row in rest) for key in ("share", "calls")}
    return {"wall_over_cpu": wall / cpu, "operators": [*named, {"operator": f"{len(rest)} others", **others}]}


def product_operations(operator: str, shapes: list[list[int]]) -> int:
    """Operations (a multiply-add is 2) that a call of an operator with these input shapes needs."""
    if operator in ("aten::mm", "aten::addmm"):
        left, right = shapes[:2] if operator == "aten::mm" else shapes[1:3]
        return 2 * left[0] * left[1] * right[1]
    if operator in (ATTENTION, f"{ATTENTION}_backward"):
        backward = operator != ATTENTION  # its first input is the output's gradient
        (batch, heads, tokens, channels), key = shapes[backward], shapes[backward + 1]
        return (8 if backward else 4) * batch * heads * tokens * key[2] * channels
    return 0
