"""Checkpoints of a training run: complete folders, also if the process is killed.

    save_checkpoint(accelerator, "runs/mine", step=500, rank_state={"loader": loader.state_dict()}, keep_last=2)
    step, rank_state = load_checkpoint(accelerator, latest_checkpoint("runs/mine"))

A checkpoint is written to `*.tmp`, synced to disk and then renamed.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import load

from ..data.files import PARTIAL_SUFFIX, commit_folder, empty_folder, remove_folder, writing
from .settings import one_sentence


CHECKPOINT_PATTERN = re.compile(r"^checkpoint-(\d+)$")
ADVICE = "continue with resume=latest"  # after a failed write
# Torch's messages for weights or optimizer groups of other sizes
MISFITS = ("loading state_dict", "parameter group")


def checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Complete checkpoints of a run's folder: {step: path}, by step."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return {}
    found = ((CHECKPOINT_PATTERN.match(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def latest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next(reversed(checkpoints(output_dir).values()), None)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    rank_state: dict[str, Any] | None = None,
    keep_last: int | None = None,
) -> Path:
    """Writes `checkpoint-<step>/` atomically. Every process calls it.

    Args:
        accelerator: holds the prepared model and optimizer; random states of all processes are saved too.
        step: optimizer steps done.
        rank_state: state of this process, such as the position of its data loader: tensors and plain values.
            Accelerate would write the data loaders of all processes to one file.
        keep_last: number of checkpoints to keep; None keeps all.

    Raises:
        OSError: the files cannot be written; earlier checkpoints stay.
    """
    whole = Path(output_dir) / f"checkpoint-{step}"
    partial = whole.with_name(whole.name + PARTIAL_SUFFIX)
    if accelerator.is_main_process:
        empty_folder(partial)
    accelerator.wait_for_everyone()
    with writing(whole, ADVICE):
        accelerator.save_state(str(partial))
        torch.save(rank_state or {}, partial / f"rank_state_{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        progress = {"step": step, "num_processes": accelerator.num_processes}
        with writing(whole, ADVICE):
            (partial / "progress.json").write_text(json.dumps(progress) + "\n")
            commit_folder(partial, whole)
        if keep_last is not None:
            for old in list(checkpoints(output_dir).values())[:-keep_last]:
                remove_folder(old)
    accelerator.wait_for_everyone()
    return whole


def load_checkpoint(accelerator: Accelerator, checkpoint: str | os.PathLike) -> tuple[int, dict[str, Any]]:
    """Restores model, optimizer and random states from a folder of `save_checkpoint`; returns (step, rank_state).

    Raises:
        FileNotFoundError: the folder is not a checkpoint.
        ValueError: it has another number of processes or another model, or it is damaged.
    """
    checkpoint = Path(checkpoint)
    progress = read_progress(checkpoint)
    if progress["num_processes"] != accelerator.num_processes:
        raise ValueError(
            f"{str(checkpoint)!r} was written by {progress['num_processes']} processes and this run has "
            f"{accelerator.num_processes}; resuming exactly needs the same number."
        )
    rank = accelerator.process_index
    try:
        load(checkpoint / f"random_states_{rank}.pkl")  # Accelerate ignores an unreadable file without a message
        rank_state = torch.load(checkpoint / f"rank_state_{rank}.pt", weights_only=True)
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # of any type, for a truncated file
        if any(misfit in str(error) for misfit in MISFITS):
            raise ValueError(
                f"{str(checkpoint)!r} does not fit the configured model or its optimizer's groups; resume with its "
                f"run's config.yaml ({one_sentence(error)[:200]})."
            ) from error
        raise _damaged(checkpoint, error) from error
    # Checkpoints lie between steps, also if that run had another number of micro-batches
    accelerator.step = 0
    return progress["step"], rank_state


def read_progress(checkpoint: Path) -> dict[str, int]:
    """`step` and `num_processes` of a checkpoint."""
    path = checkpoint / "progress.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(checkpoint)!r} is not a checkpoint of this package; give a `checkpoint-<step>` folder."
        )
    try:
        progress = json.loads(path.read_text())
        return {name: int(progress[name]) for name in ("step", "num_processes")}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(checkpoint: Path, error: Exception) -> ValueError:
    match = CHECKPOINT_PATTERN.match(checkpoint.name)
    earlier = [path for step, path in checkpoints(checkpoint.parent).items() if match and step < int(match[1])]
    onward = "there is no earlier one to resume from"
    if earlier:
        onward = f"remove it and continue with resume={earlier[-1]}"
    reason = f"{type(error).__name__}: {one_sentence(error)[:200]}"
    return ValueError(f"The checkpoint {str(checkpoint)!r} is damaged and does not load ({reason}); {onward}.")
