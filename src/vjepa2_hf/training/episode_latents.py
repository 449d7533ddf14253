"""Latents of episodes for the training of a world model and of its heads: caches of an encoder, and model inputs.

caches = open_caches(config, accelerator, encoder, processor, {"state_type": "tokens"}, ["latents", "actions"])
inputs = model_inputs(window_mixture.read(windows, frames, skip), model, processor)
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..configuration_world_model import LEARNED_DIM, VJepa2WorldModelConfig
from ..data.episodes import EpisodeSource, EpisodeStream
from ..data.feature_cache import FeatureCache, data_fingerprint
from ..data.files import weights_fingerprint
from ..data.windows import WindowMixture
from ..modeling_encoder import VJepa2Encoder
from ..modeling_learned_state import VJepa2LearnedState
from ..modeling_world_model import VJepa2WorldModel
from ..video_processing_vjepa2 import VJepa2VideoProcessor
from .cached_windows import as_shards, cache_root, describe_encoder, encode_episodes, open_cache, split_windows
from .settings import read_yaml


logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 64  # frames
# Fields of a world model, beside its type of state and its views, that change its latents before any fitted map
LATENT_FIELDS = {"normalize_latents": "layer", "state_levels": "last"}
LEARNED_FIELDS = {"state_dim": LEARNED_DIM, "state_input": "pixels", "state_stem": "conv", "standardize_frames": True}
# Sizes of a world model of which only the latents are needed
NO_DYNAMICS = {
    "predictor_hidden_size": 8,
    "predictor_num_attention_heads": 1,
    "predictor_num_hidden_layers": 0,
    "predictor_position_embedding_type": "learned",
    "context_frames": 1,
}


def episode_sources(data: str | list[EpisodeSource]) -> list[EpisodeSource]:
    """The sources of a `data` setting."""
    if not data:
        raise ValueError(f"data is {data!r}, without a source of episodes; give at least one.")
    return [EpisodeSource(data)] if isinstance(data, str) else data


def open_caches(
    config: Any,
    accelerator: Accelerator,
    encoder: VJepa2Encoder,
    processor: VJepa2VideoProcessor,
    state: dict[str, Any],
    columns: Sequence[str],
    optional: Collection[str] = (),
    network: VJepa2LearnedState | None = None,
    frames_only: bool = False,
) -> list[FeatureCache]:
    """The cache of every source, filled by the first run that needs it.

    Args:
        config: with `data`, `max_episodes`, `limits`, `num_workers`, `cache_dir`, `output_dir`, `cache_dtype`.
        state: fields of a world model that determine its latents before any fitted map, see `latent_layout`.
        columns: to read, "latents" or "frames" among them.
        optional: columns that a source may lack.
        network: of a learned state.
        frames_only: neither read nor need actions, states and rewards.
    """
    sources = episode_sources(config.data)
    views = count_views(sources)
    state = {**state, **({"num_views": views} if views > 1 else {})}
    root, latents, encode = cache_root(config, "latents"), None, None
    if "latents" in columns:
        latents = {**state, **describe_encoder(encoder, weights=not _reads_pixels(state))}
        latents |= {"dtype": config.cache_dtype, "precision": accelerator.mixed_precision}
        if network is not None:
            latents["network"] = weights_fingerprint(network)
    # Everything that the cache depends on, except the pixels
    depends_on = {"version": 1, "processor": processor.to_dict(), "max_episodes": config.max_episodes}
    depends_on |= {"latents": latents} | ({"frames_only": True} if frames_only else {})
    caches = []
    for source in sources:
        source = as_shards(source, root, accelerator)

        def fill(folder: Path, source: EpisodeSource = source) -> None:
            nonlocal encode
            given = (config, accelerator, encoder, processor, state, "latents" in columns, network)
            encode = encode or build_encode(*given)
            rank, processes = accelerator.process_index, accelerator.num_processes
            how = {"rank": rank, "world_size": processes, "limits": config.limits, "frames_only": frames_only}
            stream = EpisodeStream(source, processor, config.max_episodes, **how)
            encode_episodes(folder, stream, encode, accelerator, config.num_workers)

        description = {"data": data_fingerprint(source.path), "camera": source.camera, **depends_on}
        own = [name for name in columns if source.proprio or name != "proprio_states"]
        if len(own) < len(columns) and "proprio_states" not in optional:
            raise ValueError(f"proprio is false for {source.path!r}, the only robot: leave out use_proprio.")
        caches.append(open_cache(source.path, description, root, own, accelerator, fill, optional))
    return caches


def count_views(sources: Sequence[EpisodeSource]) -> int:
    """V: the number of cameras of each source; refuses sources with different numbers."""
    counts = {source.path: len(source.views) for source in sources}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of {path!r}" for path, count in counts.items())
        raise ValueError(f"The sources have different numbers of cameras ({found}): name as many in each camera.")
    return next(iter(counts.values()))


def with_views(sources: Sequence[EpisodeSource], config: VJepa2WorldModelConfig) -> list[EpisodeSource]:
    """The sources with the views of a world model where they name no camera; refuses another number of cameras, or
    another order of the same ones."""
    names = config.view_names or []
    if config.num_views > 1 and names:
        sources = [dataclasses.replace(source, camera=source.camera or names) for source in sources]
    for source in sources:
        if config.num_views == 1 and names and source.camera is None:
            first = f"of several cameras of {source.path!r} the first one is read; set camera to read another one"
            logger.warning("the world model was trained on the camera %r, but camera is null: %s", names[0], first)
        if source.views != names and sorted(map(str, source.views)) == sorted(names):
            raise ValueError(f"camera is {source.views}, but the world model's views are {names}: give this order.")
    views = count_views(sources)
    if views != config.num_views:
        found = ", ".join(str(name) for name in sources[0].views if name) or "one camera"
        raise ValueError(f"The world model sees {config.num_views} views, but camera names {views} ({found}).")
    return list(sources)


def find_cameras(data: str, camera: str | list[str] | None, config: VJepa2WorldModelConfig) -> str | list[str] | None:
    """The `camera` setting of episodes for a world model: as given, or null the names of its views."""
    (source,) = with_views([EpisodeSource(data, camera=camera)], config)
    return source.camera


def trained_fraction(model: str) -> float | None:
    """The `validation_fraction` of the training run RUN whose model is in the folder RUN/final, if it is known."""
    path = Path(model).parent / "config.yaml"
    return read_yaml(path).get("validation_fraction") if path.is_file() else None


def held_out_fraction(config: Any) -> float:
    """The fraction of episodes that the training of `config.model` held out: `config.validation_fraction`, or that of
    the model's run."""
    fraction = config.validation_fraction
    fraction = trained_fraction(config.model) if fraction is None else fraction
    if fraction is None:
        path = str(Path(config.model).parent / "config.yaml")
        raise ValueError(
            f"validation_fraction is not given, and {path!r} does not have it either: give that of the model's "
            "training, so that held-out episodes stay held out (1.0 to evaluate on data that is new to the model)."
        )
    return fraction


def open_episodes(
    config: Any, accelerator: Accelerator, model: VJepa2WorldModel, processor: VJepa2VideoProcessor
) -> tuple[WindowMixture, WindowMixture]:
    """Windows of the training and of the held-out episodes of a finished model: latents of its encoder, before its
    fitted map. `config` also has `model`, its folder, and `validation_fraction`."""
    fraction = held_out_fraction(config)
    encoder, state = frozen_encoder(model), model_state(model.config)
    config = dataclasses.replace(config, data=with_views(episode_sources(config.data), model.config))
    network = getattr(model, "state_network", None)
    caches = open_caches(config, accelerator, encoder, processor, state, ["latents"], network=network)
    return split_windows(caches, [source.weight for source in config.data], fraction)


def frozen_encoder(model: VJepa2WorldModel) -> VJepa2Encoder:
    """The encoder of a finished model's latents."""
    if model.config.reads_pixels:
        with torch.device("meta"):  # only its sizes count
            return VJepa2Encoder(model.config.encoder_config)
    return model.encoder if model.config.freeze_encoder else model.target_encoder


def model_state(config: VJepa2WorldModelConfig) -> dict[str, Any]:
    """The `state` of `open_caches` for a finished model."""
    return latent_layout(config.state_type, vars(config))


def latent_layout(state_type: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The `state` of `open_caches` for a model's `state_type` and other fields: those that determine its latents
    before any fitted map. Projected states are mapped tokens."""
    known = LATENT_FIELDS | (LEARNED_FIELDS if state_type == "learned" else {})
    found = {name: fields[name] for name, usual in known.items() if fields.get(name) not in (None, usual)}
    return {"state_type": "tokens" if state_type == "projected" else state_type, **found}


def load_network(model: VJepa2WorldModel, network: VJepa2LearnedState) -> None:
    """Takes over the network of another model's learned state; refuses one of other sizes."""
    weights, own = network.state_dict(), model.state_network.state_dict()
    if any(weights[name].shape != own[name].shape for name in own):
        configs = (each.config.encoder_config for each in (network, model.state_network))
        names = ("crop_size", "patch_size", "hidden_size")
        found, wanted = (", ".join(f"{name}={getattr(each, name)}" for name in names) for each in configs)
        raise ValueError(
            f"The network of the learned state was trained for an encoder of {found}, but this one has {wanted}: "
            "use the same sizes."
        )
    model.state_network.load_state_dict(weights)


def _reads_pixels(state: dict[str, Any]) -> bool:
    """Whether latents of this `state` need no encoder."""
    kind = state["state_type"]
    return kind == "pixels" or kind == "learned" and state.get("state_input", "pixels") == "pixels"


def build_encode(
    config: Any,
    accelerator: Accelerator,
    encoder,
    processor,
    state: dict[str, Any],
    as_latents: bool,
    network: VJepa2LearnedState | None = None,
) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """A function from the uint8 frames of an episode (T, C, H, W) to the cache's column: latents (T, N, D) before any
    fitted map, or the frames. Of several cameras (T, V, C, H, W) to latents (T, V · N, D)."""
    if not as_latents:
        return lambda frames: {"frames": frames}
    dtype = getattr(torch, config.cache_dtype)
    model = VJepa2WorldModel.from_encoder(encoder, **state, **NO_DYNAMICS)
    if network is not None:
        load_network(model, network)
    model.to(accelerator.device).eval()

    def encode(frames: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = []
        for part in frames.split(max(1, ENCODED_AT_ONCE // state.get("num_views", 1))):
            with accelerator.autocast():
                latents = model.encode(processor.normalize_cropped(part.to(accelerator.device).unsqueeze(0)))
            parts.append(latents[0].to("cpu", dtype))
        return {"latents": torch.cat(parts)}

    return encode


def model_inputs(batch: dict[str, torch.Tensor], model: VJepa2WorldModel, processor) -> dict[str, torch.Tensor]:
    """A batch of windows as the model takes it, on its device, with the actions of each model step concatenated."""
    batch = {name: values.to(model.device, non_blocking=True) for name, values in batch.items()}
    if "actions" in batch:
        batch["actions"] = batch["actions"].flatten(2)
    if "rewards" in batch:
        batch["rewards"] = batch["rewards"].sum(dim=(2, 3))
    if "frames" in batch:
        batch["pixel_values_videos"] = processor.normalize_cropped(batch.pop("frames"))
    else:
        batch["latents"] = model.standardize(batch["latents"].float())
    return batch
