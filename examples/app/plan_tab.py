"""The tab Plan: a start, a goal, and the closed loop of the planner."""

import gradio as gr

from vjepa2_hf.environments.shared_models import SharedModels


def build(models: SharedModels) -> None:
    """The tab's components, inside `gr.Blocks`."""
    gr.Markdown(f"The environment of this model is `{models.parts.env or 'unknown'}`.", elem_id="plan-status")
