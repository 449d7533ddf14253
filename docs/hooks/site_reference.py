"""The reference: a page for every module of the package, and docstrings as Markdown.

The pages are written from the source, which is read and not run, so that no module can be missing.
"""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "vjepa2_hf"
# Sections of the reference, in the order of the navigation; the modules of the root are in the first two and the last
ROOMS = {
    "models": "Models and configs",
    "inputs": "Videos, masks and poses",
    "pipelines": "Pipelines",
    "planning": "Planning",
    "data": "Data",
    "training": "Training",
    "probing": "Probing",
    "visualization": "Visualization",
    "environments": "Environments",
    "metrics": "Metrics",
    "hub": "Hub and conversion",
}
ROOT_ROOMS = dict.fromkeys(("masking", "pose", "video_io", "video_processing_vjepa2", "video_source"), "inputs")
ROOT_ROOMS["convert_checkpoints"] = "hub"


# -------------------------------------------------------------------------------------------------------------- pages


def path_of(module: str) -> Path:
    """The file of a module of the package, `planning.solvers`; "" is the package."""
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def modules_by_room() -> dict[str, list[str]]:
    """Names of the modules with a docstring: all but empty `__init__` files."""
    rooms: dict[str, list[str]] = {room: [] for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if module and ast.get_docstring(tree(module)):
            top = module.partition(".")[0]
            rooms[top if top in ROOMS else ROOT_ROOMS.get(top, "models")].append(module)
    return rooms


def exported(module: str) -> dict[str, str]:
    """The public names that an `__init__` imports from the package: name -> its module, as `__all__` orders them."""
    found, order = {}, []
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = module.split(".")[: len(module.split(".")) - node.level + 1] if module else []
            source = ".".join(part for part in [*base, *(node.module or "").split(".")] if part)
            found.update({alias.name: source for alias in node.names})
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            order = ast.literal_eval(node.value)
    return {name: found[name] for name in order or found if name in found}


def summary(node: ast.AST) -> str:
    """The first paragraph of a docstring, as a cell of a table."""
    paragraph = re.split(r"\n\n|\n +", ast.get_docstring(node) or "")[0]
    return to_markdown(" ".join(paragraph.split()).removesuffix("::").replace("|", "\\|"))


def names_table(module: str) -> str:
    """A table of the classes and functions that an `__init__` exports."""
    rows = []
    for name, source in exported(module).items():
        nodes = [node for node in tree(source).body if getattr(node, "name", None) == name]
        if nodes:
            rows.append(f"| [`{name}`][vjepa2_hf.{source}.{name}] | {summary(nodes[0])} |")
    return "\n".join(["| name | what it is |", "|---|---|", *rows, ""]) if rows else ""


def pages() -> dict[str, str]:
    """Path in the site -> Markdown."""
    overview = ["| section | modules |", "|---|---|"]
    found = {}
    for room, modules in modules_by_room().items():
        shown = [module for module in modules if module != room]
        listed = ", ".join(f"[`{module}`]({room}/{module}.md)" for module in shown)
        overview.append(f"| [{ROOMS[room]}]({room}/index.md) | {listed} |")
        table = ["| module | what it has |", "|---|---|"]
        for module in shown:
            table.append(f"| [`{module}`]({module}.md) | {summary(tree(module))} |")
            source = path_of(module).relative_to(ROOT).as_posix()
            filters = '\n    options:\n      filters: ["!^_(?!compute$)"]' if room == "metrics" else ""
            found[f"reference/{room}/{module}.md"] = (
                f"# `{module}`\n\n`vjepa2_hf.{module}`, in [{source}](repository:{source})\n\n"
                f"::: vjepa2_hf.{module}{filters}\n"
            )
        parts = [f"# {ROOMS[room]}", "\n".join(table)]
        if room in modules:
            members = "true" if room == "metrics" else "false"
            parts[1:1] = [f"::: vjepa2_hf.{room}\n    options:\n      members: {members}", names_table(room)]
        found[f"reference/{room}/index.md"] = "\n\n".join(part for part in parts if part) + "\n"
    text = (
        "Every module of the package, from its docstrings. Letters of shapes are explained at the head of each module."
    )
    package = names_table("") + "| [`register_custom_code`][vjepa2_hf.register_custom_code] | "
    package += summary(next(node for node in tree("").body if getattr(node, "name", "") == "register_custom_code"))
    function = (
        "::: vjepa2_hf.register_custom_code\n    options:\n      show_root_heading: true\n      heading_level: 3"
    )
    found["reference/index.md"] = "\n\n".join(
        [
            "# Reference",
            text,
            "## `from vjepa2_hf import …`",
            package + " |",
            function,
            "## Modules",
            "\n".join(overview),
        ]
    )
    return found


def navigation() -> list[dict]:
    """The section of the navigation."""
    rooms = modules_by_room()
    sections = [
        {
            title: [
                f"reference/{room}/index.md",
                *({m.rpartition(".")[2]: f"reference/{room}/{m}.md"} for m in rooms[room] if m != room),
            ]
        }
        for room, title in ROOMS.items()
    ]
    return ["reference/index.md", *sections]


# --------------------------------------------------------------------------------------------------------- docstrings


SECTIONS = ("Args", "Returns", "Raises", "Yields", "Example", "Examples", "Attributes", "Note", "Warning")
# Arguments with one description, `a, b: …`, and the lines that continue it
SHARED_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)+): (?P<text>.*(?:\n {5,}.*)*)", re.MULTILINE)
GROUP = re.compile(rf"^(?!(?:{'|'.join(SECTIONS)}):)(?P<title>\S.*):\n(?P<body>(?:    .*\n?)+)", re.MULTILINE)


@cache
def full_names() -> dict[str, str]:
    """Full names of the classes, functions and methods of the package, by short names that are not ambiguous."""
    found: list[tuple[str, str]] = []
    for module in ["", *(module for modules in modules_by_room().values() for module in modules)]:
        for node in tree(module).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                inner = [f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)]
                prefix = ".".join(part for part in ("vjepa2_hf", module) if part)
                found += [(name, f"{prefix}.{name}") for name in (node.name, *inner)]
    count = Counter(short for short, _ in found)
    return {short: full for short, full in found if count[short] == 1}


def link_to(match: re.Match) -> str:
    """[`Name`] as a link into the reference."""
    name = match[1].removesuffix("()")
    return f"[`{match[1]}`][{full_names()[name]}]" if name in full_names() else f"`{match[1]}`"


def itemize(match: re.Match) -> str:
    """A group of fields, `Title:` and indented entries, as a bold title and a list, with names as code."""
    lines = match["body"].rstrip("\n").split("\n")
    text = "\n".join(f"* {line[4:]}" if line[4:5].strip() else line for line in lines)
    text = re.sub(r"^\* [\w, ]+(?= \()", lambda names: re.sub(r"\w+", r"`\g<0>`", names[0]), text, flags=re.MULTILINE)
    parts = text.split("`")
    parts[::2] = [re.sub(r"(?<![\w./])[a-z]\w*_\w+(?![\w./(])", r"`\g<0>`", part) for part in parts[::2]]
    return f"\n**{match['title']}**\n\n{'`'.join(parts)}\n"


def split_entry(match: re.Match) -> str:
    """`a, b: text` of arguments as an entry for each of them: mkdocstrings adds type and default."""
    return "\n".join(f"    {name}: {match['text']}" for name in match["names"].split(", "))


def to_markdown(docstring: str) -> str:
    """A docstring of this package as Markdown with sections of Google's style."""
    text = re.sub(r"^ *::\n", "", docstring, flags=re.MULTILINE)
    text = re.sub(r"^Example:", "Examples:", text, flags=re.MULTILINE)
    text = re.sub(
        r"^Args:\n(    .*\n?)+", lambda args: SHARED_ENTRY.sub(split_entry, args[0]), text, flags=re.MULTILINE
    )
    return re.sub(r"\[`([\w.()]+)`\](?![(\[])", link_to, GROUP.sub(itemize, text))
