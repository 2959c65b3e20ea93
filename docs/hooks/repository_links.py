"""Rewrites relative links of a Markdown file so that they lead to pages of the site.

In: Markdown, the path that its file has in the repository, and what the site has of the repository. Out:
Markdown whose links are relative to the page's place in the site. A link that is not known stays as it is, so
that `mkdocs build --strict` names it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

_LINK = re.compile(r"(?P<head>!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?P<target>[^)\s]+)(?P<tail>\))")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def rewritten(markdown: str, *, origin: str, page: str, places: Mapping[str, str]) -> str:
    """The Markdown with the links that the site knows.

    Args:
        markdown: Text of a page.
        origin: Path of the file that it was read from, in the repository.
        page: Path of the page in the site's source, such as benchmarks/about.md.
        places: Path in the repository, or path#anchor -> path in the site's source, or path#anchor.
    """
    code = [match.span() for match in _FENCE.finditer(markdown)]

    def link(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in code):
            return match[0]
        target = _target(match["target"], origin, page, places)
        return f"{match['head']}{target}{match['tail']}"

    return _LINK.sub(link, markdown)


def _target(target: str, origin: str, page: str, places: Mapping[str, str]) -> str:
    if re.match(r"[a-z]+:", target):
        return target
    path, hash_sign, fragment = target.partition("#")
    folder = posixpath.dirname(origin)
    path = posixpath.normpath(posixpath.join(folder, path)) if path else origin
    place = places.get(f"{path}#{fragment}") or places.get(path)
    if place is None:
        return target
    if "#" not in place and not places.get(f"{path}#{fragment}"):
        place += hash_sign + fragment
    place_path, _, place_fragment = place.partition("#")
    relative = posixpath.relpath(place_path, posixpath.dirname(page) or ".")
    return f"{relative}#{place_fragment}" if place_fragment else relative
