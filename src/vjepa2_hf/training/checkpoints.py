"""Checkpoints of a training run: complete folders, also if the process is killed.

    save_checkpoint(accelerator, "runs/mine", step=500, rank_state={"loader": loader.state_dict()}, keep_last=2)
    step, rank_state = load_checkpoint(accelerator, latest_checkpoint("runs/mine"))

A checkpoint is written to `*.tmp`, synced to disk and then renamed. Its `digests.json` has the size and the digest of
each file, which are compared before anything is loaded.
"""

import contextlib
import copy
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import PreTrainedModel

from ..data.files import PARTIAL_SUFFIX, commit_folder, empty_folder, file_digest, move_aside, remove_folder, writing
from .resuming import check_sharding_of, load_rank_state, seed_new_process
from .settings import one_sentence


logger = logging.getLogger(__name__)

CHECKPOINT_PATTERN = re.compile(r"^checkpoint-(0|[1-9][0-9]*)$")
PROGRESS = "progress.json"
DIGESTS = "digests.json"
# At least one of them is in every folder of ours, however damaged; a folder without them is a user's
OUR_FILES = (PROGRESS, DIGESTS, "rank_state_0.pt", "random_states_0.pkl")
ADVICE = "continue with resume=latest"  # after a failed write
# Torch's messages for weights or optimizer groups of other sizes
MISFITS = ("loading state_dict", "parameter group")


class DamagedCheckpoint(ValueError):
    """A checkpoint whose files are not as they were written.

    Attributes:
        checkpoint: its folder.
        reason: what is wrong with it.
    """

    def __init__(self, checkpoint: Path, reason: str, onward: str | None = None):
        self.checkpoint, self.reason = checkpoint, reason
        if onward is None:
            match = CHECKPOINT_PATTERN.match(checkpoint.name)
            earlier = [path for step, path in checkpoints(checkpoint.parent).items() if match and step < int(match[1])]
            onward = f"continue with resume={earlier[-1]}" if earlier else "there is no earlier one to resume from"
        super().__init__(f"The checkpoint {str(checkpoint)!r} is damaged and does not load ({reason}); {onward}.")


def checkpoints(output_dir: str | os.PathLike) -> dict[int, Path]:
    """Checkpoints of a run's folder: {step: path}, by step. Files and folders of other origin are left out."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return {}
    found = ((CHECKPOINT_PATTERN.match(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match and is_checkpoint(path)))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder was written by `save_checkpoint`; it may be damaged."""
    return any((path / name).is_file() for name in OUR_FILES)


def latest_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    return next(reversed(checkpoints(output_dir).values()), None)


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | os.PathLike,
    step: int,
    rank_state: dict[str, Any] | None = None,
    keep_last: int | None = None,
    write_more: Callable[[Path], None] | None = None,
    global_batch_size: int | None = None,
) -> Path:
    """Writes `checkpoint-<step>/` atomically. Every process calls it.

    Args:
        accelerator: holds the prepared model and optimizer; random states of all processes are saved too.
        step: optimizer steps done.
        rank_state: state of this process, such as the position of its data loader: tensors and plain values.
            Accelerate would write the data loaders of all processes to one file.
        keep_last: number of checkpoints to keep; None keeps all.
        write_more: writes further files into the folder, in the main process.
        global_batch_size: samples per step, see `resuming`.

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
        progress = {"step": step, "num_processes": accelerator.num_processes, "digests": DIGESTS}
        if global_batch_size is not None:
            progress["global_batch_size"] = global_batch_size
        with writing(whole, ADVICE):
            (partial / PROGRESS).write_text(json.dumps(progress) + "\n")
            if write_more is not None:
                write_more(partial)
            write_digests(partial)
            if os.path.lexists(whole) and not is_checkpoint(whole):
                logger.warning("%s is not of this run and was renamed to %s", whole, move_aside(whole, "moved"))
            commit_folder(partial, whole)
        if keep_last is not None:
            for old in list(checkpoints(output_dir).values())[:-keep_last]:
                remove_checkpoint(old)
    accelerator.wait_for_everyone()
    return whole


def write_digests(folder: Path) -> None:
    """Writes `digests.json`, with the size and the digest of every file of a folder."""
    (folder / DIGESTS).write_text(json.dumps(describe_files(folder), indent=1) + "\n")


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The size and the digest of every file of a folder, by name."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "xxh3_128": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint, but not the files that a user has put into its folder."""
    try:
        ours = {DIGESTS, *json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        ours = None  # of version 0.1, or damaged: not known
    files = [path for path in checkpoint.rglob("*") if path.is_symlink() or not path.is_dir()]
    names = {path.relative_to(checkpoint).as_posix(): path for path in files}
    theirs = set() if ours is None else names.keys() - ours
    if not theirs:
        remove_folder(checkpoint)
        return
    logger.info("%s is removed, except %s, which this run has not written", checkpoint, ", ".join(sorted(theirs)))
    # Those that make it a checkpoint go last: until then it counts as one, and is removed by the next save
    for name in sorted(names.keys() & ours, key=lambda name: (name in OUR_FILES, name == DIGESTS)):
        names[name].unlink()
    for folder in sorted((path for path in checkpoint.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()


def find_damage(checkpoint: Path) -> str | None:
    """The first difference between the files of a checkpoint and its `digests.json`, or None. A checkpoint of an
    older version has no digests, and a file that was added since is not compared."""
    path = checkpoint / DIGESTS
    if not path.is_file():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if DIGESTS in json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")).values():
                return f"{DIGESTS} is missing"
        logger.warning(
            "%s has no %s, which older versions did not write: its bytes are not checked", checkpoint, DIGESTS
        )
        return None
    try:
        files = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: (int(entry["size"]), str(entry["xxh3_128"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{DIGESTS} is unreadable: {type(error).__name__}: {one_sentence(error)[:200]}"
    if PROGRESS not in expected:
        return f"{DIGESTS} does not name {PROGRESS}"
    for name, (size, digest) in expected.items():
        try:
            found = (checkpoint / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, {size} were written"
            if file_digest(checkpoint / name) != digest:
                return f"the bytes of {name} have changed since they were written"
        except OSError as error:
            return f"{name} is missing" if isinstance(error, FileNotFoundError) else one_sentence(error)
    return None


def verify_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Compares a checkpoint with its digests in the main process; all processes raise what it finds.

    Raises:
        DamagedCheckpoint: a file is missing or has other bytes.
    """
    found = [find_damage(checkpoint) if accelerator.is_main_process else None]
    broadcast_object_list(found)
    if found[0] is not None:
        raise DamagedCheckpoint(checkpoint, found[0])


def write_model_files(folder: Path, model: nn.Module, processors: Iterable[Any] = ()) -> None:
    """Writes the config of a model and its processors, so that `from_pretrained` loads the checkpoint."""
    if hasattr(model, "write_model_files"):
        model.write_model_files(folder)
    elif isinstance(model, PreTrainedModel):
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)


def load_checkpoint(
    accelerator: Accelerator, checkpoint: str | os.PathLike, verified: bool = False
) -> tuple[int, dict[str, Any]]:
    """Restores model, optimizer and random states from a folder of `save_checkpoint`; returns (step, rank_state).
    If it was saved by another number of processes, rank_state is {"processes": [rank_state of each of them]}.

    Args:
        verified: its digests have been compared, see `verify_checkpoint`.

    Raises:
        FileNotFoundError: the folder is not a checkpoint.
        DamagedCheckpoint: it is damaged.
        ValueError: it has another model.
    """
    checkpoint = Path(checkpoint)
    if not verified:
        verify_checkpoint(accelerator, checkpoint)
    progress, rank_state, problem = read_progress(checkpoint), {}, None
    check_sharding_of(accelerator, checkpoint)
    try:
        rank_state = load_rank_state(accelerator, checkpoint, progress["num_processes"])
        accelerator.load_state(str(checkpoint))
    except Exception as error:  # of any type, for a truncated file
        problem = error
    # All processes stop, or none
    reasons = [reason for reason in gather_object([problem and _reason(problem)]) if reason]
    if reasons and any(misfit in reasons[0] for misfit in MISFITS):
        raise ValueError(
            f"{str(checkpoint)!r} does not fit the configured model or its optimizer's groups; resume with its "
            f"run's config.yaml ({reasons[0]})."
        ) from problem
    if reasons:
        raise DamagedCheckpoint(checkpoint, reasons[0]) from problem
    seed_new_process(accelerator, progress["step"], progress["num_processes"])
    # Checkpoints lie between steps, also if that run had another number of micro-batches
    accelerator.step = 0
    return progress["step"], rank_state


def read_progress(checkpoint: Path) -> dict[str, int]:
    """`step`, `num_processes` and, unless 0.1 wrote it, `global_batch_size` of a checkpoint."""
    path = checkpoint / PROGRESS
    if not path.is_file():
        if is_checkpoint(checkpoint):
            raise DamagedCheckpoint(checkpoint, f"{PROGRESS} is missing")
        raise FileNotFoundError(
            f"{str(checkpoint)!r} is not a checkpoint of this package; give a `checkpoint-<step>` folder."
        )
    try:
        progress = json.loads(path.read_text())
        names = ("step", "num_processes", *(["global_batch_size"] if "global_batch_size" in progress else []))
        return {name: int(progress[name]) for name in names}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DamagedCheckpoint(checkpoint, _reason(error)) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_sentence(error)[:200]}"
