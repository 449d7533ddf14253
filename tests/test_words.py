"""Words that must not come back: home-made terms, names that collide with random seeds, British spelling.

What users read is checked: documents, docstrings, comments, error messages and help texts, comments of configs.
"""

import io
import re
import tokenize
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")]
DOCUMENTS += sorted((ROOT / "model_cards").glob("*.md")) + [
    ROOT / name / "README.md" for name in ("examples", "benchmarks")
]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
CONFIGS = sorted((ROOT / "examples" / "configs").rglob("*.yaml"))
CODE = sorted(path for folder in ("src", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# Each with what to write instead
HOME_MADE = {
    r"pictures?": "image, or figure",
    r"(?:what|that|which) (?:does|do|did) not read": "unreadable, corrupt",
    r"by chance|to chance|of chance|chance_\w+": "stochastic, noise, random",
    r"places": "positions, grid, indices, parameters",
    r"told|tells": "infer, predict, pass, report",
    r"shares? of": "fraction of",
    r"one deviation": "standardize",
    r"(?:one|numbers?|bounds?) a (?:row|clip|dimension|step|frame|class|video|task|model|line)": "per row",
    r"a clip a|steps a second|clips a second|frames a second": "per second",
    r"seed ?00[03]": "the temporal recipe, the two-phase recipe",
    r"at hand": "available",
    r"go(?:es|ne)? on with|went on with": "continue",
    r"cannot tell": "does not determine, cannot know",
    r"the whole road|honest floor": "the complete pipeline, the baseline",
    r"by heart": "memorized, overfitted",
    r"in silence": "silently",
}
OUR = "behavi|col|endeav|fav|flav|harb|hon|lab|neighb|rum|vap"
ISE = (
    "author|categor|central|character|custom|discret|emphas(?=ised|ising)|equal|factor|final|general|initial|linear|local|"
    "maxim|memor|minim|modern|normal|optim|organ|parallel|parametr|penal|priorit|quant|random|real(?!is[mt])|recogn|"
    "regular|serial|special|stabil|standard|summar|synchron|token|util|vector|visual"
)
BRITISH = [
    rf"(?:{OUR})our(?!s?e)\w*",
    rf"(?:de|un|re)?(?:{ISE})is(?:e[drs]?|ing|ations?)",
    r"analyse[drs]?|analysing",
    r"grey\w*|centre[ds]?|metres?|millimetres?|fibres?|artefacts?|licence|judgement|whilst|learnt",
    r"(?:cancel|channel|label|level|model|signal|travel|tunnel)l(?:ed|ing|er|ers)",
]
# Names in what 0.1 saved
ALLOWED = {"num_neighbours", "neighbour_temperature", "chance_head", '"neighbours"', '"places"'}


HOME_MADE = {re.compile(rf"\b(?:{words})\b", re.IGNORECASE): better for words, better in HOME_MADE.items()}
SPELLED = re.compile("|".join(BRITISH), re.IGNORECASE)


def british(text: str) -> list[str]:
    parts = set(re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text))
    return [f"{part!r}: American spelling" for part in sorted(parts) if SPELLED.fullmatch(part)]


def found(text: str) -> list[str]:
    """Words of a text that should be others, with what to write instead."""
    text = re.sub("|".join(ALLOWED), "", text)
    wrong = [f"{word!r}: {better}" for words, better in HOME_MADE.items() for word in words.findall(text)]
    return wrong + british(text)


def prose_and_names(path: Path) -> tuple[str, str]:
    """Comments and strings (docstrings, errors, help texts) of a file of Python, and its identifiers."""
    strings = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
    prose = "\n".join(token.string for token in tokens if token.type in strings)
    return prose, " ".join({token.string for token in tokens if token.type == tokenize.NAME})


def wrong_words(texts: dict[Path, str]) -> dict[str, list[str]]:
    words = {str(path.relative_to(ROOT)): found(text) for path, text in texts.items()}
    return {path: wrong for path, wrong in words.items() if wrong}


def test_documents():
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    moved = re.compile(r"^### Moved$.*?^## ", flags=re.DOTALL | re.MULTILINE)  # old names, in CHANGELOG
    assert not wrong_words({path: moved.sub("", text) for path, text in texts.items()})


def test_configs():
    assert not wrong_words({path: path.read_text(encoding="utf-8") for path in CONFIGS})


def test_code():
    read = {path: prose_and_names(path) for path in CODE}
    assert not wrong_words({path: prose for path, (prose, _) in read.items()})
    assert not {str(path): british(names) for path, (_, names) in read.items() if british(names)}


def test_the_words_are_found_and_others_are_not():
    assert len(found("A picture that does not read; seed 003, colour_map, normalisedLatents, labelled, grey")) == 7
    assert not found("An image, four hours, our source, course, otherwise, precise, likelihood, modeled, noise")
