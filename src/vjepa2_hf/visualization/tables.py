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


def publish_tables(results: dict[str, Any], text: str, path: Path, documents: Sequence[Path], name: str) -> None:
    """Writes results to their JSON file and their tables between the markers of documents, and prints the tables.

    Args:
        results: numbers of the tables.
        text: the tables.
        path: JSON file.
        documents: pages with markers.
        name: of the markers.
    """
    write_json(path, results)
    for document in documents:
        write_between_markers(text, document, name)
    print(text)  # noqa: T201


def write_between_markers(text: str, document: Path, name: str) -> None:
    """Replaces the text between two markers of a page."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = document.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    write_text(document, f"{before}{begin}\n{text}\n{end}{after}")
