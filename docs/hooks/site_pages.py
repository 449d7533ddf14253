"""Pages of the site that are not in docs/: README, other documents, notebooks, the reference, and files behind links.

MkDocs calls the functions `on_...`. Links are written for readers of the repository and lead to the same place in the
site: a link to a document leads to its page, and one to another file, such as a config, to a page that shows the file.
"""

import json
import re
import sys
from pathlib import Path, PurePosixPath
from posixpath import relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify


sys.path.insert(0, str(Path(__file__).parent))
import site_reference  # noqa: E402
from site_links import ROOT, is_relative, links, map_links, resolve  # noqa: E402


NOTEBOOKS = "examples/notebooks"
# Documents outside of docs/ and model_cards/: path in the repository -> path in the site
DOCUMENTS = {
    "README.md": "index.md",
    "examples/README.md": "scripts.md",
    "examples/app/README.md": "files/app_readme.md",
}
DOCUMENTS |= {name: name.lower() for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".slurm": "bash", ".json": "json"}
EXTERNAL_IMAGE = re.compile(r"!\[([^]]*)\]\(https?://[^)]*\)")  # such as the badges of notebooks
IMAGES = ("image/png", "image/gif", "image/jpeg")
HIDDEN_FROM_SEARCH = "---\nsearch:\n  exclude: true\n---\n\n"

_sites: dict[PurePosixPath, str] = {}  # path in the repository -> path of its page or file in the site
_sources: dict[str, PurePosixPath] = {}  # path of a page in the site -> its path in the repository


def on_config(config: MkDocsConfig) -> None:
    """Anchors as GitHub names them; the tutorials and the reference in the navigation."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": slugify(case="lower")}
    tutorials = [f"tutorials/{path.stem}.md" for path in notebooks()]
    generated = {"Tutorials": tutorials, "Reference": site_reference.navigation()}
    for section in config.nav:
        for title, pages in section.items() if isinstance(section, dict) else ():
            if title in generated:
                section[title] = [*generated[title], *(pages or [])]
    config.nav = [one for one in config.nav if not isinstance(one, dict) or all(one.values())]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    _sites.clear()
    _sources.clear()
    for file in files:
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(ROOT):
            path = PurePosixPath(Path(file.abs_src_path).relative_to(ROOT).as_posix())
            _sites[path], _sources[file.src_uri] = file.src_uri, path
    texts = {name: text_of(name) for name in documents()}
    for name, uri in documents().items():
        add(files, config, uri, texts[name], name)
    for uri, text in site_reference.pages().items():
        add(files, config, uri, text)
    pages = [file for file in files if file.is_documentation_page()]
    for file in pages:
        for target in links(file.content_string):
            add_linked_file(files, config, file.src_uri, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to paths in the repository become links to paths in the site, and images from elsewhere their texts."""
    markdown = EXTERNAL_IMAGE.sub(r"\1", markdown)
    return map_links(markdown, lambda target: site_link(page.file.src_uri, target))


# -------------------------------------------------------------------------------------------------------------- pages


def notebooks() -> list[Path]:
    return sorted((ROOT / NOTEBOOKS).glob("*.ipynb"))


def documents() -> dict[str, str]:
    """The documents outside of docs/ that are there: path in the repository -> path in the site."""
    found = {name: uri for name, uri in DOCUMENTS.items() if (ROOT / name).is_file()}
    found |= {f"model_cards/{name}.md": f"model_cards/{name}.md" for name in ("demo",)}
    return found | {path.relative_to(ROOT).as_posix(): f"tutorials/{path.stem}.md" for path in notebooks()}


def text_of(name: str) -> str:
    """A document as Markdown, without the YAML head of a model card."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        return "\n\n".join(part for cell in json.loads(text)["cells"] for part in cell_parts(cell)) + "\n"
    return text.split("\n---\n", 1)[1] if text.startswith("---\n") else text


def cell_parts(cell: dict) -> list[str]:
    """A cell of a notebook and its outputs, as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return [source]
    parts = [fenced(source, "python")] if source.strip() else []
    for output in cell["outputs"]:
        data = {
            kind: "".join(value) for kind, value in output.get("data", {}).items() if isinstance(value, str | list)
        }
        images = [
            f'<img alt="output" src="data:{kind};base64,{data[kind].strip()}">' for kind in IMAGES if kind in data
        ]
        text = "".join(output.get("text", data.get("text/plain", "")))
        shown = images[0] if images else data.get("text/html") or fenced(text, "text")
        parts.append(f'<div class="output" markdown="1">\n\n{shown}\n\n</div>')
    return parts


def fenced(text: str, language: str) -> str:
    ticks = "`" * (4 if "```" in text else 3)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def add(files: Files, config: MkDocsConfig, uri: str, text: str, source: str | None = None) -> None:
    """Adds a page; `source` is its path in the repository."""
    files.append(File.generated(config, uri, content=text))
    if source:
        _sites[PurePosixPath(source)], _sources[uri] = uri, PurePosixPath(source)


# -------------------------------------------------------------------------------------------------------------- links


def target_in_repository(uri: str, target: str) -> tuple[PurePosixPath, str] | None:
    """The path in the repository that a link of a page means, and its anchor; `None` for other links."""
    if target.startswith("repository:"):
        return PurePosixPath(target.removeprefix("repository:")), ""
    if uri not in _sources or not is_relative(target):
        return None
    return resolve(_sources[uri], target)


def add_linked_file(files: Files, config: MkDocsConfig, uri: str, target: str) -> None:
    """Adds a page that shows the file, or the file itself if it is an image, that a link leads to."""
    found = target_in_repository(uri, target)
    if found is None or found[0] in _sites or not (ROOT / found[0]).is_file():
        return
    path, _ = found
    if path.suffix in (".png", ".gif", ".jpg", ".svg"):
        files.append(File.generated(config, str(path), abs_src_path=str(ROOT / path)))
        _sites[path] = str(path)
        return
    text = (ROOT / path).read_text(encoding="utf-8")
    block = fenced(text, LANGUAGES.get(path.suffix, "text"))
    add(files, config, f"files/{path}.md", f"{HIDDEN_FROM_SEARCH}# `{path}`\n\n{block}\n", str(path))


def site_link(uri: str, target: str) -> str:
    """A link of a page as it is in the site; one that leads nowhere stays, for MkDocs to complain about."""
    found = target_in_repository(uri, target)
    if found is None or found[0] not in _sites:
        return target
    return relpath(_sites[found[0]], PurePosixPath(uri).parent) + found[1]
