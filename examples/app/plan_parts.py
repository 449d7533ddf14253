"""What both kinds of the tab Plan share: the settings of the search, and the components for results."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from vjepa2_hf.environments.live_planning import ON_ITS_WAY, PlanSettings, list_costs, list_solvers


PLAN_MILLISECONDS = 4000.0  # of a plan; then no iteration starts
PLANNING = "Planning …"
STOPPED = "<strong>Stopped.</strong> "
STATUS = '<div role="status" aria-live="polite">${value}</div>'


def search_settings(config: Any) -> list[gr.components.Component]:
    """Solver, candidates, horizon and distance, in the order of `read_settings`."""
    solvers, costs, each = list_solvers(config), list_costs(config), config.actions_per_step
    horizon = f"Horizon, in model steps of {each} action{'s' if each > 1 else ''}"
    solver = "How action sequences are searched; cem is the cross-entropy method."
    candidates = "Action sequences that are imagined in each iteration of the search."
    ahead = "How far ahead each of them is imagined."
    distance = "How the imagined states are compared with the goal."
    return [
        gr.Dropdown(solvers, value=solvers[0], label="Solver", info=solver, elem_id="plan-solver"),
        gr.Slider(16, 512, value=128, step=16, label="Candidates", info=candidates, elem_id="plan-candidates"),
        gr.Slider(1, 10, value=3, step=1, label=horizon, info=ahead, elem_id="plan-horizon"),
        gr.Dropdown(costs, value=costs[0], label="Distance to the goal", info=distance, elem_id="plan-distance"),
    ]


def read_settings(solver: str, candidates: int, horizon: int, cost: str) -> PlanSettings:
    counts = {"num_candidates": int(candidates), "horizon": int(horizon)}
    return PlanSettings(solver, cost=cost, budget_ms=PLAN_MILLISECONDS, **counts)


def say_stopped(status: str) -> str:
    """The status after a press of Stop; the same if nothing was running."""
    runs = ON_ITS_WAY in status or status == PLANNING
    return STOPPED + status if runs and not status.startswith(STOPPED) else status


@dataclass
class Results:
    """The components for results, from the top of the page to its end."""

    status: gr.HTML
    frames: gr.HTML
    costs: gr.HTML
    landscape: gr.HTML

    @classmethod
    def build(cls, first: str) -> "Results":
        """`first` is the status that the page opens with."""
        status = gr.HTML(first, html_template=STATUS, elem_id="plan-status")
        frames = gr.HTML(elem_id="plan-frames")
        with gr.Row():
            with gr.Column(min_width=280):
                costs = gr.HTML(elem_id="plan-costs")
            with gr.Column(min_width=280):
                landscape = gr.HTML(elem_id="plan-landscape")
        return cls(status, frames, costs, landscape)

    def all(self) -> list[gr.HTML]:
        return [self.status, self.frames, self.costs, self.landscape]

    def empty(self, status: str) -> dict[gr.HTML, str]:
        """A new status, and nothing else."""
        return {self.status: status, self.frames: "", self.costs: "", self.landscape: ""}
