"""Every relative link of every page leads to a file, and to a heading where it names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLACES = ("", "docs/**", "node_image/**")
PAGES = sorted({page for place in PLACES for page in ROOT.glob(f"{place}/*.md" if place else "*.md")})
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def _text(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def _anchors(page: Path) -> set[str]:
    """As the usual renderers make them."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_text(page)))
    return {each.strip().replace(" ", "-") for each in kept}


def _faults(page: Path, text: str) -> list[str]:
    faults = []
    for link in _LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in _anchors(target):
            faults.append(f"{link}: no such heading")
    return faults


def test_there_are_pages_to_look_at() -> None:
    assert ROOT / "README.md" in PAGES
    assert ROOT / "docs" / "reference" / "settings.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not _faults(page, _text(page))


def test_a_broken_link_is_found() -> None:
    text = "[a](README.md) [b](nowhere.md) [c](README.md#see-it) [d](README.md#nothing) [e](https://example.org/x)"
    assert _faults(ROOT / "README.md", text) == ["nowhere.md: no such file", "README.md#nothing: no such heading"]


TITLED = [page for page in PAGES if page.parent.name != "changelog.d" or page.name == "README.md"]
"""A changelog fragment is one sentence."""


@pytest.mark.parametrize("page", TITLED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_title_and_starts_with_it(page: Path) -> None:
    titles = re.findall(r"^# .+$", _text(page), re.MULTILINE)
    assert len(titles) == 1
    assert page.read_text().startswith(titles[0])
