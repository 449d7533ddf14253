"""Links of Markdown documents, for the site and for the tests; the command asks whether external links answer.

python docs/hooks/site_links.py      # needs the network; prints the links that do not answer, and then exits with 1
"""

import json
import re
import sys
import unicodedata
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath


ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
CODE = re.compile(rf"{FENCE.pattern}|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?=(?: \"[^\"]*\")?\))")
HTML_LINK = re.compile(r"""<(?:a|img)\b[^>]*?\b(?:href|src)=["']([^"']+)["']""")
BARE_URL = re.compile(r"https?://(?!localhost\b|127\.)[^\s<>\"')\]`|]+")
TIMEOUT = 20  # seconds until a page answers
UNAVAILABLE = (401, 403, 405, 429)  # answers of pages that exist but are not for programs


def documents() -> list[Path]:
    """The Markdown files and notebooks that users read."""
    patterns = ["*.md", "docs/*.md", "model_cards/*.md", "examples/README.md", "examples/app/README.md"]
    found = {path for pattern in [*patterns, "examples/notebooks/*.ipynb"] for path in ROOT.glob(pattern)}
    return sorted(found - {ROOT / "model_cards" / "template.md"})  # a template of Jinja


def markdown_of(path: Path) -> str:
    """The text of a Markdown file, or of the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def without_code(text: str) -> str:
    """A Markdown text of the same length, with spaces in the place of blocks and spans of code."""
    return CODE.sub(lambda code: " " * len(code[0]), text)


def links(text: str) -> Iterator[str]:
    """Targets of the links and images of a Markdown text, outside of code."""
    text = without_code(text)
    yield from (match[0] for match in LINK.finditer(text))
    yield from HTML_LINK.findall(text)


def external_links(text: str) -> set[str]:
    """http and https URLs of a Markdown text, outside of code; those of the own machine are left out."""
    return {url.rstrip(".,;:") for url in BARE_URL.findall(without_code(text))}


def map_links(text: str, change: Callable[[str], str]) -> str:
    """A Markdown text with `change(target)` in the place of the target of every link, outside of code."""
    parts, start = [], 0
    for match in LINK.finditer(without_code(text)):
        parts += [text[start : match.start()], change(match[0])]
        start = match.end()
    return "".join([*parts, text[start:]])


def is_relative(target: str) -> bool:
    """Whether a link leads to a file of the repository, perhaps to an anchor in it."""
    return not re.match(r"[a-z][a-z0-9+.-]*:|//|#|$", target, re.IGNORECASE)


def resolve(page: PurePosixPath, target: str) -> tuple[PurePosixPath, str]:
    """The file that a relative link of a page means, and its anchor with "#", or "". Paths are the repository's."""
    path, mark, anchor = target.partition("#")
    parts: list[str] = []
    for part in (page.parent / path).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts), mark + anchor


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    heading = unicodedata.normalize("NFC", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """The anchors of a Markdown text: its headings, numbered where they repeat, and ids in HTML."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), flags=re.MULTILINE):
        name, number = slug(heading), 0
        while (name if not number else f"{name}-{number}") in found:
            number += 1
        found.add(name if not number else f"{name}-{number}")
    return found | set(re.findall(r"""\b(?:id|name)=["']([^"']+)["']""", text))


def failure(url: str) -> str | None:
    """Why a URL does not answer, or `None`."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (link check of vjepa2_hf)"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in UNAVAILABLE else f"answers {error.code}"
    except (OSError, ValueError) as error:
        return f"does not answer: {error}"


def main() -> None:
    pages: dict[str, list[str]] = {}
    for path in documents():
        for url in external_links(markdown_of(path)):
            pages.setdefault(url, []).append(path.relative_to(ROOT).as_posix())
    failures = {url: reason for url in sorted(pages) if (reason := failure(url))}
    for url, reason in failures.items():
        print(f"{url} {reason} ({', '.join(pages[url])})")
    print(f"{len(pages)} links, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
