"""Links of documents and notebooks: those within the repository lead to files and headings, others are well-formed."""

import re
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import pytest
import site_links
from builders import ROOT


DOCUMENTS = {path.relative_to(ROOT).as_posix(): site_links.markdown_of(path) for path in site_links.documents()}


def broken(page: str, text: str) -> list[str]:
    """The relative links of a page that lead nowhere."""
    found = []
    for target in site_links.links(text):
        if target.startswith("#"):
            path, anchor = PurePosixPath(page), target
        elif site_links.is_relative(target):
            path, anchor = site_links.resolve(PurePosixPath(page), target)
        else:
            continue
        if not (ROOT / path).exists():
            found.append(f"{target}: there is no {path}")
        elif anchor and path.suffix == ".md":
            names = site_links.anchors((ROOT / path).read_text(encoding="utf-8"))
            if anchor[1:] not in names:
                found.append(f"{target}: {path} has no heading {anchor}, but {sorted(names)}")
    return found


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_lead_to_files_and_headings(page):
    assert not broken(page, DOCUMENTS[page])


@pytest.mark.parametrize("page", DOCUMENTS)
def test_external_links_are_well_formed(page):
    for url in site_links.external_links(DOCUMENTS[page]):
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https") and re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc), url
        assert re.fullmatch(r"[\x21-\x7e]+", url), f"{url} holds a character that URLs escape"


def test_documents_are_all_that_users_read():
    names = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "docs/planning.md"}
    assert names | {"model_cards/demo.md"} <= set(DOCUMENTS)


def test_a_broken_link_is_found():
    text = "[a](planning.md) [b](missing.md) `[c](in_code.md)` [`d`](planning.md#no-such-heading)\n"
    text += (
        "```\n[e](fenced.md)\n```\n![f](missing.png) [g](planning.md#solvers) [h](#here)\n# Here\n<a href='i.md'>\n"
    )
    targets = ["missing.md", "planning.md#no-such-heading", "missing.png", "#here", "i.md"]
    assert [line.partition(":")[0] for line in broken("docs/looking.md", text)] == targets


def test_anchors_are_those_of_github():
    text = "# Distance head: `distance_head: true`\n## What's new?\n## What's new?\n```\n# no heading\n```\n"
    assert site_links.anchors(text) == {"distance-head-distance_head-true", "whats-new", "whats-new-1"}


def test_links_change_outside_of_code_alone():
    text = "[a](x.md)\n```\n[a](x.md)\n```\n[b](y.md#z)"
    assert site_links.map_links(text, str.upper) == "[a](X.MD)\n```\n[a](x.md)\n```\n[b](Y.MD#Z)"
    with_span = "`[a](x.md)` [b](x.md)"
    assert site_links.map_links(with_span, str.upper) == "`[a](x.md)` [b](X.MD)"


def test_the_command_reports_links_that_do_not_answer(monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](http://nowhere.invalid/none), [b](other.md), http://127.0.0.1:9", encoding="utf-8")
    monkeypatch.setattr(site_links, "documents", lambda: [page])
    monkeypatch.setattr(site_links, "ROOT", tmp_path)
    with pytest.raises(SystemExit) as stopped:
        site_links.main()
    printed = capsys.readouterr().out
    assert (
        stopped.value.code == 1 and "http://nowhere.invalid/none does not answer" in printed and "(page.md)" in printed
    )
    assert "1 links, 1 failures" in printed
