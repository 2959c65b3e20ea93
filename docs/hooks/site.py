"""MkDocs' hook: pages cut from benchmarks/README.md, pages that lie outside docs/, links and drawings.

In: MkDocs' config, files and pages. Out: the same with generated pages, and Markdown whose links lead to
pages of the site. The text of those files is written there alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.hooks.command_page import command_page
from docs.hooks.cut_pages import CutPage, anchor, cut_pages, page_groups
from docs.hooks.repository_links import rewritten

ROOT = Path(__file__).parents[2]
BENCHMARKS = "benchmarks/README.md"
_WHOLE_FILES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "containers.md",
}
_COPIED = (
    *("benchmarks/results/*.json", "benchmarks/results/*.png"),
    *("deploy/Dockerfile*", "deploy/compose.yaml", "deploy/kubernetes/*"),
    *("examples/*", "LICENSE"),
)
_COPIED_MORE = (
    "benchmarks/results/training.log",
    "benchmarks/results/training.run.log",
    "benchmarks/quality/instruction_depth.py",
    "tests/forked_adapter/curves.png",
)
_DRAWING = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>(?:\.\./)*pictures/[\w-]+\.svg)\)")
_LINE_BREAK = re.compile(r"(?<=[^ \\])\\$", re.MULTILINE)
"""GitHub's line break, which Python-Markdown writes as two blanks; a command's has a blank in front of it."""
_OWN_STYLE = re.compile(r"<style>.*?</style>\s*", re.DOTALL)


def read(path: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / path).read_text("utf-8")


def benchmark_pages() -> list[CutPage]:
    """The pages of benchmarks/README.md."""
    return cut_pages(read(BENCHMARKS))


def generated_pages() -> dict[str, tuple[str, str]]:
    """Path in the site's source -> (path in the repository that it comes from, Markdown)."""
    from pad_vllm.cli.app import app

    pages = {f"benchmarks/{page.name}.md": (BENCHMARKS, page.text) for page in benchmark_pages()}
    pages |= {place: (path, read(path)) for path, place in _WHOLE_FILES.items()}
    pages["reference/commands.md"] = ("pad_vllm/cli/app.py", command_page(app))
    pages["glossary.md"] = ("ARCHITECTURE.md", glossary(read("ARCHITECTURE.md")))
    return pages


def glossary(architecture: str) -> str:
    """The page of ARCHITECTURE.md's section of that name."""
    section = architecture[architecture.index("## Glossary") :].split("\n## ", maxsplit=1)[0]
    return section.removeprefix("#")


def copied_files() -> list[str]:
    """Paths in the repository of files that pages link to and that are no pages."""
    found = [path for pattern in _COPIED for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    return [path.relative_to(ROOT).as_posix() for path in found] + list(_COPIED_MORE)


def site_places() -> dict[str, str]:
    """Path in the repository, or path#anchor -> path in the site's source."""
    places = dict(_WHOLE_FILES)
    places |= {path: f"files/{path}" for path in copied_files()}
    places |= {
        f"docs/{path.relative_to(ROOT / 'docs').as_posix()}": path.relative_to(
            ROOT / "docs"
        ).as_posix()
        for path in (ROOT / "docs").rglob("*.md")
    }
    places["README.md"] = "index.md"
    places["ARCHITECTURE.md#glossary"] = "glossary.md"
    places[BENCHMARKS] = "benchmarks/about.md"
    places |= {
        f"{BENCHMARKS}#{page.name}": f"benchmarks/{page.name}.md" for page in benchmark_pages()
    }
    for title, pages in page_groups(benchmark_pages()):
        first = pages[0].name
        places.setdefault(f"{BENCHMARKS}#{anchor(title)}", f"benchmarks/{first}.md")
    return places


_places = site_places()
_generated = generated_pages()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of benchmarks/README.md into the navigation."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Benchmarks" in entry:
            entry["Benchmarks"] += _benchmark_entries()
    return config


def _benchmark_entries() -> list[Any]:
    entries: list[Any] = []
    for title, pages in page_groups(benchmark_pages()):
        paths = [f"benchmarks/{page.name}.md" for page in pages]
        entries.append(paths[0] if len(paths) == 1 and not pages[0].group else {title: list(paths)})
    return entries


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the files that pages link to."""
    for place, (_, text) in _generated.items():
        files.append(File.generated(config, place, content=text))
    for path in copied_files():
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Lead links to pages of the site, and put drawings into the page, where they take its colours."""
    place = page.file.src_uri
    if place == "support.md" or place in _generated:
        page.meta.setdefault("hide", []).append("toc")  # its tables are wide
    origin = _generated[place][0] if place in _generated else f"docs/{place}"
    markdown = rewritten(markdown, origin=origin, page=place, places=_places)
    markdown = _LINE_BREAK.sub("  ", markdown)
    return _DRAWING.sub(_drawing, markdown)


def _drawing(match: re.Match[str]) -> str:
    path = ROOT / "docs" / "pictures" / Path(match["path"]).name
    svg = _OWN_STYLE.sub("", path.read_text("utf-8")).strip()
    return f'<figure class="drawing">{"".join(svg.splitlines())}</figure>'
