"""The tab Plan: a start, a goal, and the closed loop of the planner in one of the package's environments."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np
import plan_images
from gradio.data_classes import ImageData
from plan_parts import PLANNING, Results, read_settings, say_stopped, search_settings
from plan_view import SIZE, png_uri, show_costs, show_episodes, show_landscape
from uploads import Refused, SessionFiles, sentence_of

from vjepa2_hf.environments.appearance import IMAGE_SIZE
from vjepa2_hf.environments.live_planning import Episode, WatchedPlanner, make_task
from vjepa2_hf.environments.plane import SUCCESS_PIXELS
from vjepa2_hf.environments.shared_models import SharedModels
from vjepa2_hf.visualization.imagination import enlarge


FIRST_TASK = 3  # seed of the task that the page opens with
RUN_SECONDS = 180.0  # of a run
RUNS = 3  # at the same time; further ones wait
HELLO = "Click in Start or Goal to move a disc, or take a random task. Then press Plan."
LABELS = ("action, to the right", "action, downwards")
Task = dict[str, list[float]]  # "start" and "goal", states of the environment


def build(models: SharedModels, files: SessionFiles) -> None:
    """The tab's components, inside `gr.Blocks`."""
    if models.planner is None:
        gr.Markdown(models.refusal, elem_id="plan-status")
    elif models.env is None:
        plan_images.build(models, files)
    else:
        EnvironmentTab(models).build()


class EnvironmentTab:
    """Tasks of the model's environment. What belongs to a session is in its `gr.State`, never here."""

    def __init__(self, models: SharedModels):
        self.models, self.env = models, models.env
        self.each = models.planner.model.config.actions_per_step  # environment actions

    def build(self) -> None:
        first = self.sample(FIRST_TASK)
        task = gr.State(first)
        gr.Markdown(self.describe())
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Row():
                    images = {name: self.task_image(name, first[name]) for name in ("start", "goal")}
                disc = gr.Radio(
                    [(self.name_of(number), disc) for number, disc in enumerate(self.env.discs)],
                    value=self.env.discs[self.env.target.start // 2],
                    label="A click in an image moves the",
                    visible=len(self.env.discs) > 1,
                    elem_id="plan-disc",
                )
                with gr.Row():
                    run = gr.Button("Plan", variant="primary", size="md", min_width=80, elem_id="plan-run")
                    stop = gr.Button("Stop", variant="stop", size="md", min_width=80, elem_id="plan-stop")
                    random = gr.Button("Random task", size="md", min_width=110, elem_id="plan-random")
                with gr.Accordion("Settings, and policies to compare with", open=False, elem_id="plan-settings"):
                    beside = gr.CheckboxGroup(
                        self.models.baselines,
                        label="Run the same task beside it",
                        info="Data policy: the one that recorded the training episodes.",
                        elem_id="plan-beside",
                    )
                    chosen = search_settings(self.models.planner.model.config)
                with gr.Accordion("Positions as numbers", open=False, elem_id="plan-numbers"):
                    numbers = {name: self.numbers_box(name, first[name]) for name in images}
            with gr.Column(scale=3, min_width=320):
                results = Results.build(HELLO)
        shown = [task, *images.values(), *numbers.values()]
        quiet = {"show_progress": "hidden"}
        for name, image in images.items():
            image.select(self.placing(name), [task, disc], shown, **quiet)
            numbers[name].submit(self.typing(name), [task, numbers[name]], [*shown, results.status], **quiet)
        random.click(self.random_task, None, shown, **quiet)
        limits = {"concurrency_limit": RUNS, "concurrency_id": "plan"}
        wait = {"show_progress": "minimal", "show_progress_on": results.status}
        running = run.click(self.streaming(results), [task, beside, *chosen], results.all(), **limits, **wait)
        stop.click(say_stopped, results.status, results.status, cancels=[running], queue=False, **quiet)

    def describe(self) -> str:
        """The task in a sentence."""
        agent, target = self.name_of(0), self.name_of(self.env.target.start // 2)
        until = f"until {'it' if agent == target else f'the {target}'} is where *Goal* shows it"
        within = f"within {SUCCESS_PIXELS:g} of {IMAGE_SIZE} pixels, in at most {self.env.max_steps} steps"
        return f"The planner moves the {agent} {until}: {within}."

    def name_of(self, disc: int) -> str:
        color = ("red", "green", "blue")[int(np.argmax(self.env.plain_colors[disc]))]
        return f"{self.env.discs[disc]} ({color})"

    def task_image(self, name: str, state: list[float]) -> gr.Image:
        image = gr.Image(
            label=name.capitalize(),
            alt_text=f"{name.capitalize()} of the task: a click moves a disc there",
            interactive=False,
            min_width=150,
            buttons=[],
            elem_id=f"plan-{name}",
        )
        # Gradio would write every image to a file and put the path of that file into the page
        image.postprocess = lambda pixels: ImageData(url=png_uri(pixels))
        image.value = image.postprocess(self.render(state)).model_dump()
        return image

    def numbers_box(self, name: str, state: list[float]) -> gr.Textbox:
        order = ", ".join(f"x and y of the {disc}" for disc in self.env.discs)
        info = f"{order}; 0 to 1, from the left and from the top. Enter moves them."
        return gr.Textbox(self.to_text(state), label=name.capitalize(), info=info, elem_id=f"plan-{name}-numbers")

    def render(self, state: list[float]) -> np.ndarray:
        return np.asarray(enlarge(self.env.render_state(np.float32(state)), SIZE))

    def to_text(self, state: list[float]) -> str:
        return " ".join(f"{value:.3f}" for value in state[: 2 * len(self.env.discs)])

    def sample(self, seed: int) -> Task:
        start, goal = self.env.sample_task(seed)
        return {"start": start.tolist(), "goal": goal.tolist()}

    def show(self, task: Task) -> list[Any]:
        """The task, its two images, and its positions as text."""
        states = [task["start"], task["goal"]]
        return [task, *map(self.render, states), *map(self.to_text, states)]

    def random_task(self) -> list[Any]:
        return self.show(self.sample(secrets.randbelow(2**31)))

    def placing(self, name: str) -> Any:
        def place(task: Task, disc: str, event: gr.SelectData) -> list[Any]:
            position = (np.array(event.index[:2]) + 0.5) / SIZE
            state = self.env.place(task[name], self.env.discs.index(disc), position)
            return self.show({**task, name: state.tolist()})

        return place

    def typing(self, name: str) -> Any:
        def read(task: Task, text: str) -> list[Any]:
            try:
                return [*self.show({**task, name: self.read_numbers(task[name], text)}), HELLO]
            except Refused as error:
                return [*[gr.skip()] * 5, sentence_of(error)]

        return read

    def read_numbers(self, state: list[float], text: str) -> list[float]:
        """The state (S,) with its discs at the positions of a text."""
        count = 2 * len(self.env.discs)
        try:
            values = [float(each) for each in text.replace(",", " ").split()]
        except ValueError as error:
            raise Refused(f"The positions are not all numbers; expected {count} from 0 to 1.") from error
        if len(values) != count or not all(0 <= value <= 1 for value in values):
            raise Refused(f"The positions are {len(values)} numbers; expected {count} from 0 to 1.")
        try:
            return self.env.check_state(np.float32([*values, *state[count:]])).tolist()
        except ValueError as error:
            raise Refused("Discs overlap there, or one leaves the field; expected free positions.") from error

    def streaming(self, results: Results) -> Any:
        def stream(task: Task, beside: list[str], *chosen: Any) -> Iterator[dict[Any, str]]:
            try:
                yield from self.run(results, task, beside, *chosen)
            except Exception as error:  # whatever happens, the page says one sentence, and the log the rest
                yield {results.status: sentence_of(error)}

        return stream

    def run(self, results: Results, task: Task, beside: list[str], *chosen: Any) -> Iterator[dict[Any, str]]:
        """Frames of the closed loop and figures of its plans, as they come."""
        yield results.empty(PLANNING)
        end, settings, models = time.monotonic() + RUN_SECONDS, read_settings(*chosen), self.models
        planner = WatchedPlanner(models.planner, settings, models.lock, models.imagery)
        episode = self.episode("world model", task, planner)
        others = [self.episode(name, task, models.baseline(name, settings)) for name in beside]
        plans: list[list[float]] = []
        while not all(each.ended for each in (episode, *others)):
            if time.monotonic() > end:
                text = f"Stopped after {RUN_SECONDS:g} seconds, the limit.<br>{self.outcomes(episode, others)}"
                yield {results.status: text}
                return
            if not episode.ended:
                episode.advance()
            if not episode.planning:
                for each in others:
                    each.advance_step()
            frames = show_episodes(episode, planner.view, self.env, others, self.models.imagery.source)
            yield {results.frames: frames, results.status: self.outcomes(episode, others)}
            if episode.planning:
                plans.append(planner.view.plan["trace"]["cost"])
                yield {results.costs: show_costs(plans), results.landscape: self.landscape(episode, planner)}
        yield {results.status: self.outcomes(episode, others)}

    def episode(self, name: str, task: Task, plan: Any) -> Episode:
        tasks = make_task(self.models.parts.env, task["start"], task["goal"], self.models.parts.env_kwargs)
        return Episode(name, tasks, plan, self.each)

    def landscape(self, episode: Episode, planner: WatchedPlanner) -> str:
        given = planner.arguments(episode.tasks)
        found = planner.landscape(episode.image, episode.tasks.goal_images[0], **given)
        return show_landscape(found, planner.view.plan["action"], LABELS)

    @staticmethod
    def outcomes(episode: Episode, others: list[Episode]) -> str:
        lines = [f"<strong>{each.name}</strong>: {each.outcome}" for each in (episode, *others)]
        return "<br>".join(lines)
