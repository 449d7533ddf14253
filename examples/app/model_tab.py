"""The tab "What the model knows": its card."""

from pathlib import Path

import gradio as gr
from huggingface_hub import ModelCard

from vjepa2_hf.environments.shared_models import SharedModels


def build(models: SharedModels) -> None:
    """The tab's components, inside `gr.Blocks`."""
    folder = Path(models.parts.model)
    card = ModelCard.load(folder / "README.md" if folder.is_dir() else models.parts.model)
    gr.Markdown(card.text, elem_id="model-card")
