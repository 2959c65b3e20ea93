"""Fills pages with what the package itself says: refusals, the support matrix, results.

    python -m docs.hooks.filled_blocks

A block stands between `<!-- made KIND ARGUMENT -->` and `<!-- / -->` in README.md or a page of docs/; one
between `<!-- NAME PATH -->` and `<!-- / -->` is a table of benchmarks/results. A test checks that both agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from benchmarks.fill_readme_tables import filled as with_results
from docs.hooks.results_tables import dimensions_table, means_table, setting_table
from docs.hooks.support_matrix import matrix, refused_by_name
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.params import parse_guidance
from pad_vllm.request_limits import InstructionDefaults, RequestLimits
from pad_vllm.serving.frontend.request_fields import request_field_check

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_BLOCK = re.compile(
    r"(?P<head><!-- made (?P<kind>\w+)(?: (?P<argument>.*?))? -->\n)(?P<body>.*?)(?P<end><!-- / -->)",
    re.DOTALL,
)


def demo_limits(*, instructions: bool = False) -> RequestLimits:
    """What `pad-vllm serve smollm2-135m --adapter demo` accepts of a request."""
    config = read_config(resolve_adapter("demo"))
    return RequestLimits(
        dimensions=config.dimensions,
        beta=config.beta,
        top_k=config.top_k,
        no_repeat=config.no_repeat,
        min_p=config.min_p,
        max_beta=10,
        max_top_k=100,
        instructions=InstructionDefaults() if instructions else None,
    )


def refusal_of(argument: str) -> str:
    """The message of the 400 that `vllm_xargs` get, as JSON; with `body` in front: that a whole body gets."""
    kind, _, text = argument.partition(" ") if argument[0] != "{" else ("", "", argument)
    request = json.loads(text)
    try:
        if kind == "body":
            _check_body(request)
        else:
            parse_guidance(request, demo_limits(instructions=kind == "words"))
    except ValueError as error:
        return str(error)
    raise AssertionError(f"nothing refuses {text}")


class _Body:
    """A request as vLLM parses it, as far as its fields are looked at."""

    model_extra: ClassVar[dict[str, object]] = {}
    vllm_xargs: object = None
    use_beam_search = False

    def __init__(self, fields: dict[str, object]) -> None:
        vars(self).update(fields)


def _check_body(fields: dict[str, object]) -> None:
    request_field_check(lambda _: False)(_Body(fields))


def _refused(argument: str) -> str:
    return f"```text\n{_wrapped(refusal_of(argument))}\n```"


def _wrapped(text: str, width: int = 74) -> str:
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def _results(argument: str) -> str:
    if argument == "means":
        return means_table()
    result, _, guided = argument.partition(" ")
    return dimensions_table(result, guided)


MAKERS: dict[str, Callable[[str], str]] = {
    "refused": _refused,
    "support": lambda argument: {"matrix": matrix, "refused": refused_by_name}[argument](),
    "results": _results,
    "setting": setting_table,
}
"""Kind of a block -> its Markdown, from its argument."""


def filled(page: str) -> str:
    """The page with every block as the package has it now."""

    def block(match: re.Match[str]) -> str:
        made = MAKERS[match["kind"]](match["argument"] or "")
        return f"{match['head']}\n{made}\n\n{match['end']}"

    return with_results(_BLOCK.sub(block, page), ROOT / "benchmarks" / "results")


def main() -> None:
    """Write every page whose blocks have changed."""
    for path in PAGES:
        before = path.read_text("utf-8")
        after = filled(before)
        if after != before:
            path.write_text(after, "utf-8")
            print(f"filled {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
