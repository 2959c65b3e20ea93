"""Cuts one long Markdown file at its headings into pages, without changing its text.

In: the text of benchmarks/README.md. Out: pages with the names of their files, and which heading's anchor is
on which page. Knows neither MkDocs nor links.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HEADING = re.compile(r"^(?P<marks>#{1,3}) (?P<title>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class CutPage:
    """One section of the file."""

    name: str
    """File name without folder and ending, which is the anchor that the heading has in the whole file."""

    group: str
    """Title of the section around it; empty for a section of the first level."""

    text: str
    """Its Markdown, with the heading as the page's title."""


def anchor(title: str) -> str:
    """The anchor of a heading, as GitHub and Python-Markdown make it."""
    words = re.sub(r"[^\w\s-]", "", title).strip().lower()
    return re.sub(r"\s+", "-", words)


def cut_pages(text: str) -> list[CutPage]:
    """The pages of a file: one for each heading of levels two and three; what stands before the first of them
    is a page `about`.
    """
    found = [match for match in _HEADING.finditer(text) if len(match["marks"]) > 1]
    ends = [match.start() for match in found[1:]] + [len(text)]
    about = _HEADING.sub("# How everything here was measured", text[: found[0].start()], count=1)
    pages = [CutPage("about", "", about)]
    group = ""
    for match, end in zip(found, ends, strict=True):
        body = text[match.end() : end].strip()
        inner = match["marks"] == "###"
        group = group if inner else match["title"]
        if body:
            name, around = anchor(match["title"]), group if inner else ""
            pages.append(CutPage(name, around, f"# {match['title']}\n\n{body}\n"))
    return pages


def page_groups(pages: list[CutPage]) -> list[tuple[str, list[CutPage]]]:
    """(title, its pages), in order: a section of the first level with the sections inside it."""
    groups: list[tuple[str, list[CutPage]]] = []
    for page in pages:
        if page.group and groups and groups[-1][0] == page.group:
            groups[-1][1].append(page)
        else:
            groups.append((page.group or page.text.splitlines()[0].removeprefix("# "), [page]))
    return groups
