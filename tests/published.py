"""Reference vectors of the published code (`fixtures/`) and its state-dict names in ours."""

import functools
from pathlib import Path

import torch
from safetensors.torch import load_file

from vjepa2_hf.hub.published_format import from_published_names


FIXTURES = Path(__file__).parent / "fixtures"

# Sizes of the models in the fixtures
ENCODER = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "crop_size": 64,
    "frames_per_clip": 8,
}
PREDICTOR = {"predictor_hidden_size": 48, "predictor_num_hidden_layers": 2, "predictor_num_attention_heads": 3}

# A small model for tests that need no reference
TINY_ENCODER = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
}
TINY_PREDICTOR = {"predictor_hidden_size": 24, "predictor_num_hidden_layers": 2, "predictor_num_attention_heads": 2}


@functools.cache
def golden(name: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / f"{name}.safetensors")


def below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names start with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def our_names(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The published weights below a prefix under the names of our modules."""
    state = below(tensors, prefix)
    probe = "probe" if "linear.weight" in state else "encoder"
    return from_published_names(state, "predictor" if prefix == "predictor/" else probe)


def transformers_names(encoder_state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of our encoder under the names of transformers' `VJEPA2Model`."""
    state = {}
    for name, value in encoder_state.items():
        name = name.replace("patch_embeddings.", "embeddings.patch_embeddings.")
        if ".attention.qkv." in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state["encoder." + name.replace("qkv", part)] = rows
        else:
            state["encoder." + name] = value
    return state
