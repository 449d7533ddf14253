"""Small models, videos, shards and weights that several test files build."""

import contextlib
import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Features, Value, Video
from safetensors.torch import load_file
from torch import nn

import vjepa2_hf
from vjepa2_hf import (
    VJepa2Encoder,
    VJepa2EncoderConfig,
    VJepa2ForMaskedLatentPrediction,
    VJepa2ForVideoClassification,
    VJepa2MaskedLatentPredictionConfig,
    VJepa2Planner,
    VJepa2VideoClassificationConfig,
    VJepa2VideoProcessor,
    VJepa2WorldModel,
    VJepa2WorldModelConfig,
)
from vjepa2_hf.data.feature_cache import CacheWriter, finish_cache
from vjepa2_hf.data.shards import write_shards
from vjepa2_hf.data.video_writing import encode_video
from vjepa2_hf.hub.published_format import from_published_names
from vjepa2_hf.planning import CEM
from vjepa2_hf.training.config import TrainingConfig
from vjepa2_hf.training.run import Run
from vjepa2_hf.training.schedules import LearningRateSchedule, set_learning_rate


ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
EXAMPLES = ROOT / "examples"

TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}  # the published numbers themselves are float32

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
# V-JEPA 2.1: its fields, a tiny encoder, and the encoder of golden/v2_1 and golden/v2_1_distilled
FIELDS_2_1 = {"image_tubelet_size": 1, "modality_embeddings": True, "rope_interleave": True, "rope_grid_size": 16}
TINY_2_1 = {**TINY_ENCODER, **FIELDS_2_1, "output_levels": [0, 1]}
GOLDEN_2_1 = {
    **FIELDS_2_1,
    "hidden_size": 48,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "crop_size": 64,
    "frames_per_clip": 8,
    "output_levels": [2, 5, 8, 11],
}
TINY_PREDICTOR = {"predictor_hidden_size": 24, "predictor_num_hidden_layers": 2, "predictor_num_attention_heads": 2}


# ---------------------------------------------------------------------------------------------------------- weights


def spread(model):
    """Adds noise to the weights, so that a mistake shows in the outputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def same_weights(one, other) -> bool:
    return same_parts(one.state_dict(), other.state_dict())


def same_parts(one: dict, other: dict) -> bool:
    """Whether two state dicts are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@functools.cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """Reference vectors of the published code, by the name of their file in `fixtures/`."""
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


# Sizes that the golden files' tensors do not hold, for `convert_checkpoints`
GOLDEN_SETTINGS = {
    "pretraining": {"num_attention_heads": 3, "predictor_num_attention_heads": 3},
    "action-conditioned": {"num_attention_heads": 3, "predictor_num_attention_heads": 3, "crop_size": 64},
    "probe": {"num_attention_heads": 3, "pooler_num_attention_heads": 3},
    "encoder": {"num_attention_heads": 3},
    "V-JEPA 1": {"num_attention_heads": 3, "position_embedding_type": "sincos"},
    "uniform": {"num_attention_heads": 3, "position_embedding_type": "sincos", "uniform_power": True},
}


def published_part(data, prefix: str, module: str = "module.backbone.") -> dict[str, torch.Tensor]:
    """The tensors below a prefix, under the names of the published programs' wrappers."""
    return {module + name: value for name, value in below(data, prefix).items()}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    """Names and shapes of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def published_blocks(prefix: str, width: int, depth: int, hidden: int) -> dict[str, tuple]:
    """Names and shapes of transformer blocks, written out and not from the package's tables."""
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width)}
    layers["mlp.fc2"] = (width, hidden)
    block = {f"{name}.weight": shape for name, shape in layers.items()}
    block |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    block |= {f"{norm}.{kind}": (width,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    return {f"{prefix}.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}


def on_meta(shapes: dict[str, tuple]) -> dict[str, torch.Tensor]:
    """Tensors without memory, of these shapes."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def golden_content(kind: str) -> dict:
    """The golden weights as the published programs save them."""
    if kind == "pretraining":
        data = golden("masked_latent")
        content = {name: published_part(data, f"{name}/") for name in ("encoder", "target_encoder", "predictor")}
        return {**content, "opt": {"state": {}}, "scaler": None, "epoch": 3, "loss": 0.5, "lr": 1e-4}
    if kind == "action-conditioned":
        data = golden("world_model_ac")
        return {name: published_part(data, f"{name}/", "module.") for name in ("encoder", "predictor")}
    if kind == "probe":
        return {"classifiers": [published_part(golden("attentive_classifier"), "state/", "module.")]}
    name = {"encoder": "encoder_rope", "V-JEPA 1": "encoder_sincos", "uniform": "encoder_sincos_uniform"}[kind]
    return {"target_encoder": published_part(golden(name), "state/")}


def write_checkpoint(folder: Path, content: dict, name: str = "published.pt") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(content, folder / name)
    return folder / name


# ----------------------------------------------------------------------------------------------------------- models


def loaded(model_class, folder, **options):
    """A model of ours from a folder, with nothing missing and nothing left over."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def load_published(data, encoder_config, extrinsics=False, **fields) -> VJepa2WorldModel:
    """The world model of a golden file."""
    config = VJepa2WorldModelConfig(
        encoder_config=encoder_config,
        action_dim=7,
        proprio_dim=7,
        extrinsics_dim=6 if extrinsics else 0,
        **{**PREDICTOR, **fields},
    )
    model = VJepa2WorldModel(config).eval()
    model.encoder.load_state_dict(our_names(data, "encoder/"))
    predictor = our_names(data, "predictor/")
    if not extrinsics:  # present in the published file even when unused
        predictor = {key: value for key, value in predictor.items() if not key.startswith("extrinsics")}
    model.predictor.load_state_dict(predictor)
    return model


def build_encoder() -> VJepa2Encoder:
    torch.manual_seed(0)
    return spread(VJepa2Encoder(VJepa2EncoderConfig(**TINY_ENCODER))).eval()


def build_masked_latent(frames_per_clip: int = 8, **fields) -> VJepa2ForMaskedLatentPrediction:
    torch.manual_seed(0)
    encoder_config = {**TINY_ENCODER, "frames_per_clip": frames_per_clip}
    config = VJepa2MaskedLatentPredictionConfig(encoder_config=encoder_config, **TINY_PREDICTOR, **fields)
    return spread(VJepa2ForMaskedLatentPrediction(config)).eval()


LABELS = {0: "waves", 1: "jumps", 2: "sits"}


def build_classifier() -> VJepa2ForVideoClassification:
    torch.manual_seed(0)
    labels = {"num_labels": 3, "id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    pooler = {"pooler_num_attention_heads": 2, "num_pooler_layers": 1, "initializer_range": 0.2}
    config = VJepa2VideoClassificationConfig(encoder_config=TINY_ENCODER, **pooler, **labels)
    return VJepa2ForVideoClassification(config).eval()


SOLVER = {"horizon": 3, "num_candidates": 16, "num_iterations": 2, "num_elites": 4}


def build_planner(solver=None, *, options: dict[str, Any] | None = None, size: int = 32, **fields) -> VJepa2Planner:
    """A planner of `SOLVER`'s settings unless `solver` is a `CEM`; `fields` are the world model's config."""
    torch.manual_seed(0)
    settings = {**({} if isinstance(solver, CEM) else SOLVER), **(options or {})}
    fields = {"action_dim": 2, "context_frames": 2, "predictor_initializer_range": 0.2, **TINY_PREDICTOR, **fields}
    model = spread(VJepa2WorldModel(VJepa2WorldModelConfig(encoder_config=TINY_ENCODER, **fields)))
    return VJepa2Planner(model, VJepa2VideoProcessor(size=size, crop_size=32), solver=solver, **settings)


def build_l1_planner() -> VJepa2Planner:
    """A planner whose settings are not the defaults."""
    return build_planner(size=40, options={"distance": "l1", "candidate_chunk_size": 8, "device": "cpu"})


def same_plan(one, other) -> bool:
    """Equal but for rounding."""
    close = np.allclose(one["actions"], other["actions"], atol=1e-5)
    return close and abs(one["cost"] - other["cost"]) <= 1e-5


# ------------------------------------------------------------------------------------------------- images and clips


def clips(frames=4, height=32, width=32, batch_size=2, seed=0) -> torch.Tensor:
    """Noise as (B, T, C, H, W), standardized pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, frames, 3, height, width, generator=generator)


def noise_pixels(frames: int, size: int = 16) -> torch.Tensor:
    """Noise as (T, C, H, W), standardized pixels."""
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(frames))


def noise_frames(frames: int, height: int = 24, width: int = 40) -> np.ndarray:
    """Noise as (T, H, W, C) bytes."""
    return np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def noise_image(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


OBSERVATION, GOAL, OTHER = noise_image(0), noise_image(1), noise_image(2)


def moving_square(frames: int) -> bytes:
    """A video file of a bright square on noise."""
    images = np.random.default_rng(0).integers(0, 40, (frames, 32, 40, 3), dtype=np.uint8)
    for number in range(frames):
        images[number, 8:18, number % 30 : number % 30 + 10] = 230
    return encode_video(images, fps=10)


def raw_pixels(frames: np.ndarray, return_tensors: str) -> dict[str, torch.Tensor]:
    """A processor that changes nothing: frames (T, ...) -> float32 (1, T, ...)."""
    return {"pixel_values_videos": torch.from_numpy(frames).float().unsqueeze(0)}


def square_over_noise(frames: int, seed: int = 0) -> bytes:
    """A video of a bright square that moves over noise, 16 x 24 pixels at 10 fps."""
    images = np.random.default_rng(seed).integers(0, 60, (frames, 16, 24, 3), np.uint8)
    for number in range(frames):
        images[number, 4:12, number % 16 : number % 16 + 8] = 250
    return encode_video(images, fps=10)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder as `http://127.0.0.1:port`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# -------------------------------------------------------------------------------------------------- numbered videos


CLIP_FEATURES = Features({"video": Video(decode=False), "path": Value("string")})


def numbered_frames(num_frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Gray frames whose value is four times their number."""
    return (
        np.full((num_frames, height, width, 3), 4, np.uint8)
        * np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    )


def numbers_of(frames) -> list[int]:
    """The frame numbers from the decoded gray values (T, H, W, C)."""
    return np.rint(np.asarray(frames, np.float32).mean((1, 2, 3)) / 4).astype(int).tolist()


def numbered_video(num_frames: int = 30, fps: float = 12) -> bytes:
    return encode_video(numbered_frames(num_frames), fps=fps)


def write_numbered_shards(folder, num_videos: int = 13, num_shards: int = 4, bad: tuple = (5,)) -> str:
    """Videos v00, v01, ... of 30 frames at 12 fps; the `bad` ones do not decode."""
    video = numbered_video()
    rows = (
        {"video": {"bytes": b"no video" if i in bad else video, "path": None}, "path": f"v{i:02d}"}
        for i in range(num_videos)
    )
    assert write_shards(rows, folder, CLIP_FEATURES, num_shards=num_shards) == num_videos
    return str(folder)


# --------------------------------------------------------------------------------------------------- a training run


@dataclass(kw_only=True)
class TinyRunConfig(TrainingConfig):
    """Settings of a run of one linear layer."""

    max_steps: int = 10
    batch_size: int = 4
    log_every: int = 1
    keep_last: int | None = None
    scale: tuple[float, float] = (0.3, 1.0)
    encoder: dict[str, Any] = field(default_factory=dict)
    learning_rate: LearningRateSchedule = field(default_factory=lambda: LearningRateSchedule("warmup_stable_decay"))


def tiny_run(output_dir, seed=0, width=3, config=None):
    """A run's folder with the layer and the optimizer that it trains."""
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(width, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    config = TinyRunConfig(output_dir=str(output_dir), **(config or {}))
    return Run(config, accelerator), model, optimizer


def train_tiny_run(run, model, optimizer, steps) -> None:
    for step in steps:
        set_learning_rate(optimizer, 0.1 / step)
        loss = model(torch.randn(4, 3)).square().mean()
        run.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        run.log({"step": step, "loss": loss.detach()})


def run_python(code: str, *arguments, package: bool, cache: Path) -> subprocess.CompletedProcess:
    """A fresh process, offline, that either has our package or cannot import it."""
    without = (
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'vjepa2_hf':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, NotInstalled())\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(vjepa2_hf.__file__).parents[1]) if package else "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(cache),
        "TRANSFORMERS_VERBOSITY": "warning",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", ("" if package else without) + code, *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def run_group(target: Callable, *args, count: int = 2) -> None:
    """Calls `target(rank, *args)` in processes that find each other as those of torchrun do. They are forked from
    this one, which has imported everything."""
    context = torch.multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [context.Process(target=_in_group, args=(target, rank, count, port, args)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * count


def _in_group(target: Callable, rank: int, count: int, port: int, args: tuple) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "localhost"}
    target(rank, *args)


# ---------------------------------------------------------------------------------------------------------------------
# Caches of features
# ---------------------------------------------------------------------------------------------------------------------
def cached_episode(number: int, length: int) -> dict[str, torch.Tensor]:
    """Frame t of episode e is the number 100 e + t, and the action that leads from t to t + 1 is that plus a half."""
    frames = 100.0 * number + torch.arange(length)
    return {"latents": frames.view(-1, 1, 1), "actions": frames[:-1].unsqueeze(1) + 0.5}


def write_cache(folder, lengths: dict[str, int], part_bytes: int = 2**20, ranks: int = 1):
    """Episodes by id and length, dealt to several writers; the number in an id is the episode's."""
    for rank in range(ranks):
        writer = CacheWriter(folder, rank, part_bytes)
        for name in list(lengths)[rank::ranks]:
            writer.add(name, 10.0, cached_episode(int(name), lengths[name]))
        writer.flush()
    finish_cache(folder, {})
    return folder
