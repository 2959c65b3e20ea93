"""`pad-vllm score`: records in, the same records with scores of each dimension out, which training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import JsonLinesOutput


def score(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES", help="JSONL that `pad-vllm sample` wrote, or other records."
        ),
    ],
    scorers: Annotated[
        list[str],
        typer.Argument(
            metavar="SCORER...",
            help="positive, brief, simple, personal or clean; or DIMENSION= and one of those, "
            "classifier:MODEL\\[#LABEL], reward:MODEL\\[#LABEL] (reads the prompt too, "
            "as reward models of RLHF do), or judge:URL#MODEL\\[#INSTRUCTION].",
        ),
    ],
    out: JsonLinesOutput,
    batch: Annotated[int, typer.Option(min=1, help="Records between two writes to OUT.")] = 64,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Requests that a judge gets at once.")
    ] = 8,
) -> None:
    """Add scores of each dimension to the responses in SAMPLES.

    A judge is any OpenAI-compatible endpoint; its key comes from OPENAI_API_KEY.
    """
    with report_errors():
        from pad_vllm.training.sampling.score_responses import score_file

        counts = score_file(source, out, scorers, batch_size=batch, concurrency=concurrency)
    typer.echo(f"{out}: {counts.scored} records scored, {counts.already_done} were done before")
    for dimension, count in sorted(counts.without_score.items()):
        typer.echo(f"{dimension}: {count} responses without a score")
