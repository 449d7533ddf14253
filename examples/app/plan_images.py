"""The tab Plan for models of other environments: images of a start and a goal, and one plan."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
from plan_parts import PLANNING, Results, read_settings, say_stopped, search_settings
from plan_view import show_actions, show_costs, show_imagined, show_landscape
from uploads import Refused, SessionFiles, sentence_of

from vjepa2_hf.environments.live_planning import WatchedPlanner
from vjepa2_hf.environments.shared_models import SharedModels


HELLO = "Upload an image of the start and one of the goal, as the model's camera sees them, then press Plan."


def build(models: SharedModels, files: SessionFiles) -> None:
    """The tab's components, inside `gr.Blocks`."""
    config = models.planner.model.config
    gr.Markdown("The model's environment is not one of this package, so it plans once and does not act.")
    with gr.Row():
        images = [
            gr.Image(
                label=f"Image of the {name}",
                alt_text=f"Image of the {name}",
                type="filepath",
                sources=["upload", "clipboard"],
                min_width=150,
                elem_id=f"plan-{name}",
            )
            for name in ("start", "goal")
        ]
    states = [
        gr.Textbox(label=label, info=f"{size} numbers in the units of the training data", elem_id=f"plan-{name}")
        for name, (label, size) in _needed(config).items()
    ]
    with gr.Row():
        run = gr.Button("Plan", variant="primary", size="md", min_width=80, elem_id="plan-run")
        stop = gr.Button("Stop", variant="stop", size="md", min_width=80, elem_id="plan-stop")
    with gr.Accordion("Settings", open=False, elem_id="plan-settings"):
        chosen = search_settings(config)
    results = Results.build(HELLO)

    def stream(request: gr.Request, start: str | None, goal: str | None, *values: Any) -> Iterator[dict[Any, str]]:
        try:
            yield results.empty(PLANNING)
            pair = [_read(files, request, name, path) for name, path in (("start", start), ("goal", goal))]
            numbers, settings = values[: len(states)], values[len(states) :]
            given = {
                name: _numbers(label, size, text)
                for (name, (label, size)), text in zip(_needed(config).items(), numbers, strict=True)
            }
            yield from plan_once(models, results, pair, given, settings)
        except Exception as error:  # whatever happens, the page says one sentence, and the log the rest
            yield results.empty(sentence_of(error))

    inputs = [*images, *states, *chosen]
    wait = {"show_progress": "minimal", "show_progress_on": results.status}
    running = run.click(stream, inputs, results.all(), concurrency_id="plan", **wait)
    stop.click(say_stopped, results.status, results.status, cancels=[running], queue=False, show_progress="hidden")


def plan_once(
    models: SharedModels, results: Results, pair: list[np.ndarray], given: dict[str, Any], settings: tuple
) -> Iterator[dict[Any, str]]:
    """The actions of one plan and what is imagined under them, then the figures of the search."""
    config, settings = models.planner.model.config, read_settings(*settings)
    planner = WatchedPlanner(models.planner, settings, models.lock, models.imagery)
    view = planner.look(*pair, **given)
    actions = view.plan["actions"].reshape(len(view.plan["actions"]) * config.actions_per_step, -1)
    status = f"Planned {len(actions)} actions; their cost is {view.plan['cost']:.4g}."
    imagined = "" if models.imagery is None else show_imagined(view, models.imagery.source)
    if not imagined:
        status += " To see what is imagined, start the app with recorded episodes."
    yield {results.status: status, results.frames: imagined + show_actions(actions)}
    figures = {results.costs: show_costs([view.plan["trace"]["cost"]])}
    if actions.shape[1] > 1 and config.action_type != "discrete":
        found = planner.landscape(*pair, **given)
        figures[results.landscape] = show_landscape(found, actions[0], ("dimension 0", "dimension 1"))
    yield figures


def _needed(config: Any) -> dict[str, tuple[str, int]]:
    """States that the planner needs beside the images: label and size by argument."""
    sizes = {
        "proprio_state": ("Proprio state", config.proprio_dim),
        "extrinsics": ("Extrinsics", config.extrinsics_dim),
    }
    return {name: (label, size) for name, (label, size) in sizes.items() if size}


def _read(files: SessionFiles, request: gr.Request, name: str, path: str | None) -> np.ndarray:
    if path is None:
        raise Refused(f"The image of the {name} is missing; upload one.")
    return files.take(request.session_hash, path, "image").frames[0]


def _numbers(label: str, size: int, text: str) -> np.ndarray:
    try:
        values = np.array([float(each) for each in text.replace(",", " ").split()], np.float32)
    except ValueError as error:
        raise Refused(f"{label} holds something that is no number; expected {size} numbers.") from error
    if len(values) != size or not np.isfinite(values).all():
        raise Refused(f"{label} has {len(values)} numbers; expected {size} finite ones.")
    return values
