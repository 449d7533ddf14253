"""Labels and splits of video and image files, from metadata, from the folders they lie in, or from a list.

    describe_files(root, names)   <- metadata.csv or metadata.jsonl, else the names of folders
    read_path_list(file)          <- V-JEPA's lists of "path label" lines

Scripts that need labels of files call `describe_files`, so that they agree.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import logging
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..specs import as_settings
from ..video_io import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, ReadLimits


logger = logging.getLogger(__name__)

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
    """What metadata and folders say about files."""

    labels: list[Any]
    """By file; None for a file in no class folder."""
    splits: list[str | None]
    """By file: "train", "validation", "test" or None. All are None unless there are several splits."""
    problem: str | None = None
    """Why some labels are missing or doubtful, in a sentence."""
    columns: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """By file: all columns of its metadata."""

    @property
    def classes(self) -> list[Any]:
        """The labels that occur, sorted."""
        return sorted({label for label in self.labels if label is not None})


def describe_files(root: str | os.PathLike, names: Sequence[str], limits: ReadLimits | None = None) -> FileLabels:
    """Labels and splits of files, given by their paths below a folder.

    They are the columns `label` and `split` of metadata.csv or metadata.jsonl where there are such. Else the label is
    the last folder that names classes (see `label_files`), and the split that of a folder like `train` or `test`.

    Raises:
        ValueError: metadata that cannot be read, or whose labels are neither all text nor all numbers.
    """
    found, metadata = label_files(names), read_metadata(root, names, limits)
    columns = [metadata.get(os.path.normpath(name).replace(os.sep, "/"), {}) for name in names]
    odd = next((name for name, row in zip(names, columns) if not _is_split(row.get("split"))), None)
    splits = [
        split_of(str(row["split"])) if row.get("split") is not None else split
        for row, split in zip(columns, found.splits)
    ]
    splits = known_splits(splits)
    if not any("label" in row for row in columns):
        problem = _problem_of_unused(metadata) or found.problem
        return dataclasses.replace(found, splits=splits, columns=columns, problem=problem)
    labels, problem = [_known(row.get("label")) for row in columns], None
    wrong = next((label for label in labels if not isinstance(label, (str, int, float, type(None)))), None)
    if wrong is not None:
        expected = "expected text or a number; lists need another name, like labels"
        raise ValueError(f"A label of the metadata in {os.fspath(root)!r} is {wrong!r:.80}; {expected}.")
    missing = [name for name, label in zip(names, labels) if label is None]
    kinds = {isinstance(label, str) for label in labels if label is not None}
    if len(kinds) > 1:
        raise ValueError(f"The labels of the metadata in {os.fspath(root)!r} are text and numbers; give one kind.")
    if missing:
        problem = f"{len(missing)} of {len(names)} files have no label in the metadata, like {missing[0]}; add them."
    elif odd is not None:
        problem = f"The metadata puts {odd} into a split that is not known: name it train, validation or test."
    return FileLabels(labels, splits, problem, columns)


def _is_split(value: Any) -> bool:
    return value is None or split_of(str(value)) is not None


def _known(value: Any) -> Any:
    """A value, or None for a number that is not one (NaN)."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _problem_of_unused(metadata: dict[str, dict]) -> str | None:
    """What to say of metadata that has labels, but names none of the files."""
    name = next((name for name, row in metadata.items() if row.get("label") is not None), None)
    advice = "write file_name as a path from the folder of the metadata, with / and the ending of the file"
    return name and f"The metadata has labels, but of none of the files (like {name!r}): folders are used; {advice}."


def known_splits(splits: Sequence[str | None]) -> list[str | None]:
    """The splits by clip, or no split at all where there is only one: it separates nothing.

    Validation clips are test clips where there are no others.
    """
    names = set(splits) - {None}
    if len(names) < 2:
        return [None] * len(splits)
    return [("test" if split == "validation" and "test" not in names else split) for split in splits]


@functools.lru_cache(maxsize=4096)
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

    The label is the last folder that names classes: folders with the name of a split, folders deeper than those of
    other files, and a level of folders that is the same for all files (`rgb/`) or that holds one file each
    (`video_001/clip.mp4`) below folders that differ, name none. `limit`: file names in `problem`.
    """
    parents = [_parent(name) for name in names]
    known = {parent: _split_and_classes(parent) for parent in set(parents)}  # a folder holds many files
    splits, folders = [known[parent][0] for parent in parents], [known[parent][1] for parent in parents]
    level, depths = _class_level([part for part in folders if part]), sorted({len(part) for part in folders if part})
    labels = [part[level] if part else None for part in folders]
    odd = [name for name, label in zip(names, labels) if label is None]
    problem, advice = None, "put each file into one class folder, or add a metadata.csv with file_name and label"
    if odd and len(odd) < len(names):
        problem = f"{len(odd)} of {len(names)} files lie in no class folder, like {', '.join(odd[:limit])}; {advice}."
    elif len(depths) > 1:
        examples = [next(name for name, part in zip(names, folders) if len(part) == depth) for depth in depths]
        classes = ", ".join(sorted(set(labels))[:limit])
        problem = f"The folders of files differ in depth, like {' and '.join(examples[:limit])}"
        problem += f": the labels are those of the upper level, like {classes}. If they are wrong, {advice}."
    return FileLabels(labels, splits, problem)


def _parent(name: str) -> str:
    """The folder of a file in the dataset, with slashes."""
    return posixpath.dirname(name.replace(os.sep, "/"))


def _split_and_classes(parent: str) -> tuple[str | None, tuple[str, ...]]:
    """The split that a path of folders names, and the folders that name none."""
    parts = PurePosixPath(parent).parts
    splits = [split_of(folder) for folder in parts]
    named = tuple(folder for folder, split in zip(parts, splits) if split is None)
    return next((split for split in reversed(splits) if split), None), named


def _class_level(folders: Sequence[tuple[str, ...]]) -> int:
    """The level, from 0 for the first, whose folders name classes: the last of those that all files have."""
    counts = [Counter(level) for level in zip(*folders)]
    for level in range(len(counts) - 1, 0, -1):
        found, above = counts[level], counts[:level]
        one_each = max(found.values()) == 1 and any(1 < len(names) < len(found) for names in above)
        if not one_each and (len(found) > 1 or all(len(names) == 1 for names in above)):
            return level
    return 0


def read_metadata(
    folder: str | os.PathLike, names: Iterable[str], limits: ReadLimits | None = None
) -> dict[str, dict]:
    """Columns by file, from the metadata.csv or metadata.jsonl in the folders above the files, as in `datasets`.

    Numbers in a .csv become numbers if all values of the column are, and empty values None.
    """
    found: dict[str, dict[str, Any]] = {}
    folders = map(PurePosixPath, {_parent(name) for name in names})
    parents = {"", *(str(parent) for inner in folders for parent in (inner, *inner.parents))} - {"."}
    for parent in sorted(parents):
        here: dict[str, dict[str, Any]] = {}
        for path in (Path(folder) / parent / name for name in _METADATA):
            for row in _table(path, as_settings("limits", limits, ReadLimits)) if path.is_file() else ():
                name = os.path.normpath(os.path.join(parent, str(row.pop("file_name")))).replace(os.sep, "/")
                for column in ("label", "split") if name in here else ():
                    before, now = _known(here[name].get(column)), _known(row.get(column))
                    if None not in (before, now) and before != now:
                        raise ValueError(
                            f"{str(path)!r} gives {name!r} the {column} {now!r}, but it has {before!r} before; "
                            "keep one."
                        )
                here[name] = row
        found |= here
    return found


def _table(path: Path, limits: ReadLimits) -> list[dict[str, Any]]:
    """The rows of a .csv with a header, or of a .jsonl."""
    text = _read_text(path, limits)
    if path.suffix == ".csv":
        rows = _csv_rows(text, path)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):  # other line ends may be within JSON
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"Line {number} of {str(path)!r} is not JSON ({error}); repair it.") from error
            rows += [] if row is None else [row]
    if rows and not any(isinstance(row, dict) and "file_name" in row for row in rows):
        logger.warning("%s has no column file_name, so it is not read for labels", path)
        return []
    odd = next((row for row in rows if not isinstance(row, dict) or not row.get("file_name")), None)
    if odd is not None:
        raise ValueError(
            f"A row of {str(path)!r} has no 'file_name': {odd!r:.80}; give each row the name of its file."
        )
    return rows


def _csv_rows(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        rows = [dict(row) for row in csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)]
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is not a table of comma-separated values ({error}); repair it.") from error
    for row in rows:
        row.pop(None, None)  # values beyond the header
    for name in rows[0] if rows else ():
        for row, value in zip(rows, _numbers([row[name] for row in rows]) if name not in _FILE_NAMES else ()):
            row[name] = value
    return rows


def _numbers(values: Sequence[str | None]) -> list[int | float | str | None]:
    """Values as numbers if all are; empty ones, and NaN among numbers, are None."""
    values = [value if value and value.strip() else None for value in values]
    for kind in (int, float):
        try:
            return [None if value is None else _known(kind(value)) for value in values]
        except ValueError:
            continue
    return values


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
    limits, folder = as_settings("limits", limits, ReadLimits), os.path.dirname(os.fspath(path))
    text = _read_text(path, limits).lstrip()
    lines = [line.strip() for line in text.splitlines()]
    first = re.split(r"[,\s]+", next(iter(lines), "").lower())
    if first[0].strip("\"'") in _FILE_NAMES:
        has_commas = "," in lines[0]
        rows = _csv_rows(text if has_commas else "\n".join(re.sub(r"\s+", ",", line) for line in lines), Path(path))
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
