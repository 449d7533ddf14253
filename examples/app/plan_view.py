"""What the tab Plan shows of plans, as HTML. Images are in the page itself and leave no files behind."""

import base64
import html
import io
from typing import Any

import numpy as np
from PIL import Image

from vjepa2_hf.environments.live_planning import Episode, PlanView
from vjepa2_hf.environments.plane import PlaneEnv
from vjepa2_hf.visualization.imagination import draw_paths, enlarge, overlay
from vjepa2_hf.visualization.plan_figures import plot_action_costs, plot_costs, to_png


SIZE = 384  # pixels of an enlarged image


def png_uri(image: np.ndarray | bytes) -> str:
    """An image, uint8 (H, W, 3) or a PNG file, as an address that holds it."""
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        image = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def figure(image: np.ndarray | bytes, caption: str, alt: str | None = None) -> str:
    """An image, uint8 (H, W, 3) or a PNG file, with its caption; `alt` is for screen readers."""
    caption, alt = html.escape(caption), html.escape(alt or caption)
    return (
        f'<figure><img decoding="sync" src="{png_uri(image)}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'
    )


def row(figures: list[str], kind: str = "") -> str:
    return f'<div class="vj-frames {kind}">{"".join(figures)}</div>'


def show_episodes(episode: Episode, view: PlanView, env: PlaneEnv, others: list[Episode], how: str) -> str:
    """The present with the imagined paths of the cheapest candidates, the goal, the other episodes, and the imagined
    steps of the plan; `how` says where their images are from."""
    now = f"Step {episode.steps}, with the imagined paths of the {len(view.candidates)} cheapest candidates"
    figures = [figure(draw_rollouts(episode.image, view, env), now), figure(episode.tasks.goal_images[0], "Goal")]
    figures += [figure(each.image, f"Step {each.steps}, {each.name}") for each in others]
    return row(figures) + show_imagined(view, how)


def draw_rollouts(image: np.ndarray, view: PlanView, env: PlaneEnv) -> np.ndarray:
    """The paths of the discs that actions move: pale ones of the candidates, and the plan's on top."""
    if view.paths is None:
        return np.asarray(enlarge(image, SIZE))
    paths, colors = [], []
    for disc in range(env.controlled.start // 2, env.controlled.stop // 2):
        columns, color = slice(2 * disc, 2 * disc + 2), np.array(env.plain_colors[disc])
        paths += [*view.paths[:, :, columns], view.path[:, columns]]
        pale, dark = (0.4 * color + 0.6 * 255).astype(int), (0.6 * color).astype(int)
        colors += [tuple(pale.tolist())] * len(view.paths) + [tuple(dark.tolist())]
    return draw_paths(image, paths, colors, SIZE)


def show_imagined(view: PlanView, how: str) -> str:
    """The imagined steps of the plan, and what the last steps of the candidates have in common."""
    if view.images is None:
        return ""
    figures = [figure(image, f"model step {number}") for number, image in enumerate(view.images, 1)]
    figures.append(figure(overlay(view.ends), f"mean of the last steps of {len(view.ends)} candidates"))
    return f"<p><strong>Imagined under the plan</strong> ({html.escape(how)})</p>{row(figures, 'vj-strip')}"


def show_costs(plans: list[list[float]]) -> str:
    """The cost by iteration of every plan so far."""
    latest = plans[-1]
    text = f"from {latest[0]:.3g} to {latest[-1]:.3g} in {len(latest)} iterations"
    content = figure(
        to_png(plot_costs(plans)), "Cost by iteration of the search", f"Cost of plan {len(plans)}: {text}"
    )
    return row([content], "vj-chart")


def show_landscape(found: dict[str, Any], action: np.ndarray, labels: tuple[str, str]) -> str:
    """The result of `energy_landscape` with the first environment action (2, or more) of the plan marked."""
    line, column = np.unravel_index(int(found["costs"].argmin()), found["costs"].shape)
    lowest, chosen = f"{found['x'][column]:.2f} and {found['y'][line]:.2f}", f"{action[0]:.2f} and {action[1]:.2f}"
    alt = f"Cost by the two numbers of the first action: lowest at {lowest}; the plan takes {chosen}"
    drawn = plot_action_costs(found, action[:2], labels)
    return row([figure(to_png(drawn), "Energy landscape of the first action", alt)], "vj-chart")


def show_actions(actions: np.ndarray) -> str:
    """Environment actions (n, a) as a table, one in a row."""
    head = "".join(f'<th scope="col">dimension {number}</th>' for number in range(actions.shape[1]))
    lines = [
        f'<tr><th scope="row">{number}</th>{"".join(f"<td>{value:.3f}</td>" for value in values)}</tr>'
        for number, values in enumerate(actions, 1)
    ]
    return f'<table class="vj-table"><tr><th scope="col">action</th>{head}</tr>{"".join(lines)}</table>'
