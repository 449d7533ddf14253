"""Markdown tables, and their place between the markers of a page.

A page holds the table NAME between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; the command that measures writes it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..data.files import write_json, write_text


def format_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def publish_tables(
    results: dict[str, Any], text: str, path: Path | None, documents: Sequence[Path], name: str
) -> None:
    """Writes results to a JSON file, if `path` is given, and their tables, `text`, between the markers `name` of
    documents, and prints the tables."""
    if path is not None:
        write_json(path, results)
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    for document in documents:
        before, found, rest = document.read_text(encoding="utf-8").partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{document} has no lines {begin} and {end}, between which the tables belong: add them.")
        write_text(document, f"{before}{begin}\n{text}\n{end}{after}")
    print(text)  # noqa: T201
