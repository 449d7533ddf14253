"""Labels and splits of video and image files, from metadata, from the folders they lie in, or from a list.

    label_files(names)            <- paths relative to the dataset: labels and splits by the names of folders
    read_metadata(folder)         <- metadata.csv or metadata.jsonl, with a column `file_name`
    read_path_list(file)          <- V-JEPA's lists of "path label" lines

Scripts that need labels of files call these, so that they agree.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ReadLimits


# As `datasets` names them
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_WORDS = "|".join(_SPLITS)
_CONTENTS = "videos?|clips?|images?|frames?|data|dataset|split|set"
# train, train2017, train_256, val-1, test_videos, videos_test
_FOLDER = re.compile(rf"(?:(?:{_CONTENTS})[-_. ]?)?({_WORDS})(?:[-_. ]?(?:\d+|{_CONTENTS}))*", re.IGNORECASE)
_SHARD = re.compile(rf"({_WORDS})(?:[-_.].*)?", re.IGNORECASE)  # train-00000-of-00010.parquet
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_NAMES = ("file_name", "path", "video", "video_path", "file", "filename", "image", "image_path")
_MEDIA = "|".join(re.escape(extension) for extension in (*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS))
_LINE = re.compile(rf"""(["']?)(?P<path>.+(?:{_MEDIA}))\1(?:(?:\s*(?:,|::)\s*|\s+)(?P<label>\S.*))?""", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class FileLabels:
    """What the folders of files say about them."""

    labels: list[str | None]
    """By file; None for a file in no class folder. All are None where the folders name no classes or are ambiguous."""
    splits: list[str | None]
    """By file: "train", "validation", "test" or None."""
    problem: str | None = None
    """Why some or all files have no label although there are folders, in a sentence."""

    @property
    def classes(self) -> list[str]:
        return sorted({label for label in self.labels if label is not None})


def split_of(folder: str) -> str | None:
    """ "train", "validation" or "test" if a folder has the name of a split, like `val2017` or `test_videos`."""
    match = _FOLDER.fullmatch(folder)
    return _SPLITS[match[1].lower()] if match else None


def split_of_shard(name: str) -> str | None:
    """The split of a shard by its path in the dataset: that of a folder, or of a name like `test-00000.parquet`."""
    *folders, file = PurePosixPath(name.replace(os.sep, "/")).parts or ("",)
    found = [split for split in map(split_of, folders) if split]
    match = _SHARD.fullmatch(file)
    return found[-1] if found else _SPLITS[match[1].lower()] if match else None


def label_files(names: Sequence[str], limit: int = 3) -> FileLabels:
    """Labels and splits by the folders of files, given by their paths in the dataset.

    The label is the last folder that names classes: folders with the name of a split, and a level of folders that is
    the same for all files (`rgb/`) or that holds one file each (`video_001/clip.mp4`) below folders that differ, name
    none. `limit`: file names in `problem`.
    """
    parts = [PurePosixPath(name.replace(os.sep, "/")).parts[:-1] for name in names]
    splits = [next((split for split in map(split_of, reversed(folders)) if split), None) for folders in parts]
    folders = [tuple(folder for folder in part if split_of(folder) is None) for part in parts]
    level = _class_level(folders)
    labels = [part[-level] if len(part) >= level else None for part in folders]
    odd = [name for name, label in zip(names, labels) if label is None]
    if len(odd) == len(names):
        return FileLabels(labels, splits)
    depths = sorted({len(part) for part in folders if part})
    problem, advice = None, "put each file into one class folder, or add a metadata.csv with file_name and label"
    if len(depths) > 1:
        examples = [next(name for name, part in zip(names, folders) if len(part) == depth) for depth in depths]
        problem = f"The folders of files differ in depth, like {' and '.join(examples[:limit])}; {advice}."
        labels = [None] * len(names)
    elif odd:
        problem = f"{len(odd)} of {len(names)} files lie in no class folder, like {', '.join(odd[:limit])}; {advice}."
    return FileLabels(labels, splits, problem)


def _class_level(folders: Sequence[tuple[str, ...]]) -> int:
    """The level, from 1 for the last, whose folders name classes."""
    highest, level = min((len(part) for part in folders if part), default=1), 1

    def counts(level: int) -> Counter:
        return Counter(part[-level] for part in folders if len(part) >= level)

    while level < highest:
        found, above = counts(level), [counts(upper) for upper in range(level + 1, highest + 1)]
        one_each = max(found.values()) == 1 and any(1 < len(names) < len(found) for names in above)
        if not one_each and (len(found) > 1 or all(len(names) == 1 for names in above)):
            break
        level += 1
    return level


def read_metadata(
    folder: str | os.PathLike, names: Iterable[str], limits: ReadLimits | None = None
) -> dict[str, dict]:
    """Columns by file, from the metadata.csv or metadata.jsonl in the folders above the files, as in `datasets`.

    Numbers in a .csv become numbers if all values of the column are.
    """
    found: dict[str, dict[str, Any]] = {}
    parents = {"", *(str(parent) for name in names for parent in PurePosixPath(name.replace(os.sep, "/")).parents)}
    for parent in sorted("" if parent == "." else parent for parent in parents):
        for path in (Path(folder) / parent / name for name in _METADATA):
            for row in _table(path, limits or ReadLimits()) if path.is_file() else ():
                name = str(row.pop("file_name"))
                found[os.path.normpath(os.path.join(parent, name)).replace(os.sep, "/")] = row
    return found


def _table(path: Path, limits: ReadLimits) -> list[dict[str, Any]]:
    """The rows of a .csv with a header, or of a .jsonl."""
    text = _read_text(path, limits)
    if path.suffix == ".csv":
        rows = _csv_rows(text.splitlines(), path)
    else:
        rows = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"Line {number} of {str(path)!r} is not JSON ({error}); repair it.") from error
            rows += [] if row is None else [row]
    odd = next((row for row in rows if not isinstance(row, dict) or not row.get("file_name")), None)
    if odd is not None:
        raise ValueError(
            f"A row of {str(path)!r} has no 'file_name': {odd!r:.80}; give each row the name of its file."
        )
    return rows


def _csv_rows(lines: list[str], path: Path) -> list[dict[str, Any]]:
    try:
        rows = [dict(row) for row in csv.DictReader(lines, skipinitialspace=True)]
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is not a table of comma-separated values ({error}); repair it.") from error
    for row in rows:
        row.pop(None, None)  # values beyond the header
    for name in rows[0] if rows else ():
        values = _numbers([row[name] for row in rows]) if name not in _FILE_NAMES else None
        for row, value in zip(rows, values or ()):
            row[name] = value
    return rows


def _numbers(values: Sequence[str | None]) -> list[int | float] | None:
    for kind in (int, float):
        try:
            return [kind(value) for value in values]
        except (ValueError, TypeError):
            continue
    return None


def _read_text(path: str | os.PathLike, limits: ReadLimits) -> str:
    size = os.path.getsize(path)
    if size > limits.max_bytes:
        limit = f"more than limits.max_bytes={limits.max_bytes:,}"
        raise ValueError(f"{os.fspath(path)!r} has {size:,} bytes, {limit}; raise it if you trust the file.")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)!r} is not UTF-8 text ({error}); save it as UTF-8.") from error


def read_path_list(path: str | os.PathLike, limits: ReadLimits | None = None) -> list[dict[str, Any]]:
    """Rows of `path` and the columns of a list, such as V-JEPA's "path label" lines.

    A line is a path, or a path and its label (`a b.mp4 3`, `a.mp4,cat`, `a.mp4::3`). A .csv may begin with a line of
    names, the first of them `path`, `video` or `file_name`, and then have any columns. Labels are numbers if all are
    whole numbers. Relative paths start at the list. Lines that name no video or image are kept with a `problem`.
    """
    limits, folder = limits or ReadLimits(), os.path.dirname(os.fspath(path))
    lines = [line.strip() for line in _read_text(path, limits).splitlines()]
    first = re.split(r"[,\s]+", next(filter(None, lines), "").lower())
    if first[0].strip("\"'") in _FILE_NAMES:
        rows = _csv_rows(lines if "," in lines[0] else [re.sub(r"\s+", ",", line) for line in lines], Path(path))
        name = next(iter(rows[0]), None) if rows else None
        rows = [{"path": row.pop(name), **row} for row in rows]
    else:
        rows = []
        for number, line in enumerate(lines, start=1):
            match = _LINE.fullmatch(line)
            if match:
                label = match["label"]
                rows.append({"path": match["path"]} | ({} if label is None else {"label": label.strip("\"'")}))
            elif line and not line.startswith("#"):
                expected = 'expected "path" or "path label" with the extension of a video or image'
                problem = f"line {number} of {os.fspath(path)!r} is {line!r:.120}; {expected}"
                rows.append({"path": f"{os.fspath(path)}, line {number}", "problem": problem})
        labels = [row["label"] for row in rows if "label" in row]
        for row, number in zip((row for row in rows if "label" in row), _whole(labels) or ()):
            row["label"] = number
    for row in rows:
        if "problem" not in row and "://" not in row["path"]:
            row["path"] = os.path.join(folder, row["path"])
    if not rows:
        raise ValueError(f"{os.fspath(path)!r} names no file; expected one path per line, with or without a label.")
    return rows


def _whole(labels: Sequence[str]) -> list[int] | None:
    try:
        return [int(label) for label in labels]
    except ValueError:
        return None
