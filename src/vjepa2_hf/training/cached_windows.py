"""Training windows from features that are computed once: caches of a run, their fill, splits, statistics, batches.

cache = open_cache(path, description, root, columns, accelerator, fill)     # filled by the first run that needs it
training, held_out = split_windows([cache], weights, validation_fraction)
batches = window_loader(training, config, frames=..., skip=..., accelerator=accelerator, first=0)
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from ..data.episodes import EpisodeSource, EpisodeStream, split_episodes
from ..data.feature_cache import (
    CacheWriter,
    FeatureCache,
    data_fingerprint,
    discard_damaged,
    finish_cache,
    is_finished,
)
from ..data.files import (
    cache_key,
    file_digest,
    locked,
    remove_folder,
    used_fields,
    weights_fingerprint,
    write_json,
)
from ..data.importers import ImportOptions, holds_arrays, import_episodes
from ..data.skip_log import SkipLog
from ..data.windows import WindowBatches, WindowMixture
from .batches import all_batches
from .config import TrainingConfig
from .signals import ignore_stop_signals


logger = logging.getLogger(__name__)


def cache_root(config: Any, name: str) -> Path:
    """`cache_dir` of a config, or the folder `name` beside `output_dir`, which the runs there share."""
    return Path(config.cache_dir) if config.cache_dir else Path(config.output_dir).resolve().parent / name


def describe_encoder(encoder: torch.nn.Module, weights: bool = True) -> dict[str, Any]:
    """The sizes of an encoder and a hash of its weights, for the description of a cache."""
    sizes = used_fields(encoder.config, encoder.config.to_diff_dict())
    sizes.pop("transformers_version", None)
    sizes["vjepa2_hf_version"] = "0.1.0"  # as in the first caches, which later versions read: it changes no latents
    return {"encoder": sizes, "weights": weights_fingerprint(encoder) if weights else None}


def open_cache(
    path: str,
    description: dict[str, Any],
    root: Path,
    columns: Sequence[str],
    accelerator: Accelerator,
    fill: Callable[[Path], None],
    optional: Collection[str] = (),
) -> FeatureCache:
    """The cache of the data at `path`, filled first if no run has done so. All processes call it.

    Damaged parts are computed again.

    Args:
        description: everything that the features depend on; a cache belongs to its hash.
        root: folder of all caches.
        fill: writes the features of this process into a folder.
        optional: columns that the data may lack.
    """
    folder = root / f"{Path(path).name}-{cache_key(description)}"
    with locked(folder, accelerator, wait=True):
        discard_damaged(folder, accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        if not is_finished(folder):
            fill(folder)
            if accelerator.is_main_process:
                finish_cache(folder, {"path": path, **description})
        accelerator.wait_for_everyone()
    cache = FeatureCache(folder, columns, verify=False, optional=optional)
    cache.warn_of_skipped()
    return cache


def as_shards(source: EpisodeSource, root: Path, accelerator: Accelerator | None = None) -> EpisodeSource:
    """HDF5 and npz files as shards in `root`, imported once, and again if they are damaged; any other source as it
    is."""
    if source.fps is None:
        if holds_arrays(source.path):
            raise ValueError(
                f"{source.path!r} holds HDF5 or npz files: give their frames per second as fps, or import them with "
                "examples/import_episodes.py."
            )
        return source
    description = {"data": data_fingerprint(source.path), "fps": source.fps, "camera": source.camera, "version": 3}
    folder = root / f"{Path(source.path).stem}-{cache_key(description)}-shards"
    with locked(folder, accelerator, wait=True):
        if accelerator is None or accelerator.is_main_process:
            _import_once(source, folder)
        if accelerator is not None:
            accelerator.wait_for_everyone()
    camera = source.camera if isinstance(source.camera, list) else None  # a single video has no name
    return dataclasses.replace(source, path=str(folder), camera=camera, fps=None)


def _import_once(source: EpisodeSource, folder: Path) -> None:
    """Imports episodes, unless the folder holds them with the digests that they were written with."""
    manifest = folder / "digests.json"
    if folder.exists():
        digests = {path.name: file_digest(path) for path in sorted(folder.glob("*.parquet"))}
        try:
            same = json.loads(manifest.read_text(encoding="utf-8")) == digests
        except (OSError, ValueError):
            same = False
        if same:
            return
        logger.warning("%s is incomplete or damaged: it is removed, and its episodes are imported again", folder)
        remove_folder(folder)
    import_episodes(
        source.path, folder, ImportOptions(fps=source.fps, frames_key=source.camera, frames_setting="camera")
    )
    write_json(manifest, {path.name: file_digest(path) for path in sorted(folder.glob("*.parquet"))})


def uncached_items(
    writer: CacheWriter, stream: IterableDataset, accelerator: Accelerator, num_workers: int, title: str
) -> Iterator[dict[str, Any]]:
    """Items of a stream that the writer's cache lacks; reasons of unreadable ones go into the cache."""
    stream.done = writer.done
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, worker_init_fn=ignore_stop_signals)
    hidden = not accelerator.is_main_process
    for item in tqdm(all_batches(loader), disable=hidden, desc=f"encode {title}", initial=len(writer.done)):
        if "skipped" in item:
            writer.skip(item["skipped"])
        else:
            yield item


def encode_episodes(
    folder: Path,
    stream: EpisodeStream,
    encode: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    accelerator: Accelerator,
    num_workers: int = 0,
) -> None:
    """Writes this process's episodes into an unfinished cache: `encode` maps uint8 frames (T, C, H, W), of several
    cameras (T, V, C, H, W), to columns by name. Episodes that are there already are left out."""
    writer, title = CacheWriter(folder, accelerator.process_index), Path(stream.source.path).name
    for episode in uncached_items(writer, stream, accelerator, num_workers, title):
        name, fps, frames = (episode.pop(key) for key in ("episode_id", "fps", "frames"))
        writer.add(name, fps, {**encode(frames), **episode})
    writer.flush()
    accelerator.wait_for_everyone()


def split_windows(
    caches: Sequence[FeatureCache],
    weights: Sequence[float],
    validation_fraction: float,
    embodiments: Sequence[int] | None = None,
) -> tuple[WindowMixture, WindowMixture]:
    """Windows of the training and of the held-out episodes of all sources; `embodiments` see `WindowMixture`."""
    held_out = [torch.tensor(split_episodes(cache.ids, validation_fraction)) for cache in caches]
    training, validation = (
        WindowMixture(caches, [mask.nonzero().squeeze(1) for mask in masks], weights, embodiments)
        for masks in ([~mask for mask in held_out], held_out)
    )
    count = len(training) + len(validation)
    if not all(map(len, training.episodes)):
        raise ValueError(
            f"validation_fraction={validation_fraction} holds out every episode of a source ({count} in all): lower "
            "it, or record more."
        )
    if not len(validation):
        logger.warning(
            "validation_fraction=%s holds out none of the %d episodes: no rollout errors are measured",
            validation_fraction, count,
        )  # fmt: skip
    return training, validation


def log_skipped(caches: Sequence[FeatureCache], sources: Sequence[EpisodeSource], output_dir: str | Path) -> None:
    """Lists the episodes that the caches of the sources lack in the run's `skipped.jsonl`, at step 0."""
    found = [
        json.dumps({"source": source.path, "name": name, "reason": reason})
        for cache, source in zip(caches, sources, strict=True)
        for name, reason in cache.skipped.items()
    ]
    SkipLog(output_dir).add(0, found)


def window_statistics(mixture: WindowMixture, column: str) -> dict[str, Any]:
    """Mean, standard deviation and bounds of a column over the mixture used for training, and those of each source."""
    sources = [cache.statistics(column, chosen) for cache, chosen in zip(mixture.caches, mixture.episodes)]
    sizes = {len(source["mean"]) for source in sources}
    if len(sizes) > 1:
        found = f"The sources have {column} of sizes {sorted(sizes)}; one model needs one size"
        raise ValueError(f"{found}, or an embodiment id for each robot, such as {{path: …, embodiment: 1}}.")
    mean, std, low, high = (np.array([source[key] for source in sources]) for key in ("mean", "std", "low", "high"))
    weights = mixture.weights[:, None]
    mixed = (weights * mean).sum(0)
    deviation = np.sqrt((weights * (std**2 + (mean - mixed) ** 2)).sum(0))
    return {
        "mean": mixed.tolist(),
        # A constant dimension keeps its unit: divided by a tiny deviation, its first change would dominate
        "std": np.where(deviation > 1e-6 * np.maximum(1.0, np.abs(mixed)), deviation, 1.0).tolist(),
        "low": low.min(0).tolist(),
        "high": high.max(0).tolist(),
        "sources": sources,
    }


def common_fps(mixture: WindowMixture) -> float:
    """Frames per second of the first episode; a warning if others differ."""
    found = np.concatenate([np.asarray(cache.fps) for cache in mixture.caches])
    if found.max() > 1.01 * found.min():
        logger.warning(
            "episodes have %g to %g frames per second, so a model step has no fixed duration; the model's fps is %g",
            found.min(), found.max(), found[0],
        )  # fmt: skip
    return float(found[0])


def measured_horizons(horizons: Sequence[int], held_out: WindowMixture, skip: int) -> list[int]:
    """The horizons, in model steps, for which a held-out episode is long enough; a warning names the others."""
    if not len(held_out):
        return list(horizons)
    lengths = torch.cat([cache.lengths[chosen] for cache, chosen in zip(held_out.caches, held_out.episodes)])
    steps = (int(lengths.max()) - 1) // skip
    kept = [horizon for horizon in horizons if horizon <= steps]
    if not kept:
        raise ValueError(
            f"no held-out episode has {min(horizons) * skip + 1} frames (the longest has {lengths.max()}): lower "
            f"horizons={horizons}."
        )
    if len(kept) < len(horizons):
        logger.warning(
            "no held-out episode is long enough for horizons %s: the longest has %d model steps; only %s are measured",
            [horizon for horizon in horizons if horizon > steps], steps, kept,
        )  # fmt: skip
    return kept


def window_loader(
    mixture: WindowMixture,
    config: TrainingConfig,
    frames: Callable[[int], int],
    skip: int,
    accelerator: Accelerator,
    first: int,
) -> DataLoader:
    """Batches of random windows for this process, from micro-batch `first` (from 0) to the end of the run. `frames`
    maps a step to the frames per window, `skip` frames apart, and can be pickled."""
    micro_batches = config.gradient_accumulation_steps
    rank, processes = accelerator.process_index, accelerator.num_processes
    batches = WindowBatches(mixture, config.batch_size, frames, skip, config.seed, rank, processes, micro_batches)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, config.max_steps * micro_batches),
        num_workers=config.num_workers,
        worker_init_fn=ignore_stop_signals,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting the loader must not shift the random state that a checkpoint has restored
        generator=torch.Generator().manual_seed(config.seed),
    )
