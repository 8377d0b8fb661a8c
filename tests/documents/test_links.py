"""Every relative link of README and docs leads to a file, and its anchor to a heading there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shown import PAGES, ROOT

import rlaif

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_DEFINED = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
ALL = [*PAGES, ROOT / "CHANGELOG.md"]


def anchors(text: str) -> set[str]:
    """The headings of a page as their anchors, as both GitHub and mkdocs spell them."""
    found: set[str] = set()
    seen: dict[str, int] = {}
    for heading in _HEADING.findall(re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        github = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        mkdocs = re.sub(r"[-\s]+", "-", re.sub(r"[^\x00-\x7f]|[^\w\s-]", "", plain).strip())
        number = seen[github] = seen.get(github, -1) + 1
        found |= {f"{github}-{number}", f"{mkdocs}_{number}"} if number else {github, mkdocs}
    return found


def dead(page: Path, text: str, root: Path = ROOT) -> list[str]:
    """The relative links of a page that lead nowhere, or out of the checkout."""
    found = []
    shown = _CODE.sub(lambda m: "`" if "\n" not in m[0] else "", text)
    for link in [*_LINK.findall(shown), *_DEFINED.findall(shown)]:
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not (target.exists() and target.is_relative_to(root)):
            found.append(link)
        elif anchor and target.suffix == ".md":
            there = text if target == page else target.read_text("utf-8")
            found += [] if anchor in anchors(there) else [link]
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert dead(page, page.read_text("utf-8")) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").touch()
    (tmp_path / "there.md").write_text("# A `b`, c\n## Twice\n## Twice\n```\n# no heading\n```\n")
    good = (
        "[1](there.md) [`x`](there.md#a-b-c) [3](there.md#twice-1) [4](#own) `[5](none)`\n# Own\n"
    )
    assert dead(tmp_path / "page.md", good, tmp_path) == []
    bad = "[1](none.md) [`x`](there.md#d) [3](#own) ![4](none.png) [5](../up.md)\n\n[6]: none\n"
    bad += "[7](there.md#no-heading)\n"
    found = ["none.md", "there.md#d", "#own", "none.png", "../up.md", "there.md#no-heading", "none"]
    assert dead(tmp_path / "page.md", bad, tmp_path) == found


def test_the_site_and_its_reference_are_whole() -> None:
    """Pages of docs stand in the site's contents, and link within docs alone; all public names
    stand in the reference."""
    site = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/-]+\.md)$", site, re.MULTILINE)
    pages = [p for p in PAGES if p.is_relative_to(ROOT / "docs")]
    assert sorted(listed) == sorted(str(p.relative_to(ROOT / "docs")) for p in pages)
    for page in pages:
        assert dead(page, page.read_text("utf-8"), ROOT / "docs") == []
    reference = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert sorted(re.findall(r"^::: rlaif\.(\w+)$", reference, re.MULTILINE)) == rlaif.__all__
