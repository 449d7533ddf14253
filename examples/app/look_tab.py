"""The tab Look: features of a video."""

import gradio as gr
from uploads import SessionFiles

from vjepa2_hf.environments.shared_models import SharedModels


def build(models: SharedModels, files: SessionFiles) -> None:
    """The tab's components, inside `gr.Blocks`."""
    config = models.encoder.config
    gr.Markdown(
        f"Features are computed on clips of {config.frames_per_clip} frames of {config.crop_size} pixels.",
        elem_id="look-status",
    )
