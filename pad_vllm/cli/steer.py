"""The options of `pad-vllm evaluate --steering`, and what they ask for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.cli.shared_options import command_line_as_typed, name_value_pairs, sampling_dtype
from pad_vllm.config import ENGINES
from pad_vllm.wording import listed

DEFAULT_TEMPERATURES = (0.0, 0.7)

Prompts = Annotated[
    Path | None,
    typer.Option(
        "--steering",
        metavar="PROMPTS",
        help='Have these prompts answered and judged: .jsonl of {"prompt": text or messages}, or .txt, a '
        "prompt a line. Take some that the adapter was not trained on.",
    ),
]
JudgePrompts = Annotated[
    Path | None,
    typer.Option(
        help="With --steering: other prompts, answered to fit a judge of meaning for each dimension that a "
        "sentence taught."
    ),
]
Beside = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=ADAPTER",
        help="With --steering: another adapter on the same prompts; again for each.",
    ),
]
Betas = Annotated[
    list[float] | None,
    typer.Option(
        "--beta", help="With --steering: a strength; again for each (default: the adapter's)."
    ),
]
BesideBetas = Annotated[
    list[float] | None, typer.Option("--beside-beta", help="The same for the adapters of --beside.")
]
Temperatures = Annotated[
    list[float] | None,
    typer.Option(
        "--temperature", min=0, help="With --steering; again for each (default: 0 and 0.7)."
    ),
]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="With --steering: tokens an answer.")]
Engine = Annotated[
    str,
    typer.Option(
        help="With --steering: where the reward model runs: `shared`, or `resident` or `ray` for another "
        "base than the adapter's backbone.",
    ),
]
Told = Annotated[
    list[str] | None,
    typer.Option(
        "--told",
        metavar='NAME="SENTENCE"',
        help="With --steering: how a user would ask for a dimension that no sentence taught; again for each.",
    ),
]
Card = Annotated[
    bool,
    typer.Option("--card", help="With --steering: write the figures into the adapter's README.md."),
]
Mixes = Annotated[
    bool,
    typer.Option("--mixes/--no-mixes", help="With --steering: every two dimensions at once too."),
]
OnTop = Annotated[
    bool,
    typer.Option(
        "--on-top/--no-on-top",
        help="With --steering: guidance on top of plain prompting too, at half the strength and the whole.",
    ),
]
Teacher = Annotated[
    bool,
    typer.Option(
        "--teacher/--no-teacher",
        help="With --steering: what the base that is told the wish thinks of each answer, which taught, and "
        "takes most of the judges' time.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="With --steering: JSON file of all figures and answers. The answers are kept beside it, so that "
        "the same command again judges them without drawing.",
    ),
]


def steer(
    adapter: Path,
    base: str,
    prompts: Path,
    judge_prompts: Path | None,
    beside: Sequence[str],
    betas: Sequence[float],
    beside_betas: Sequence[float],
    told: Sequence[str],
    temperatures: Sequence[float],
    tokens: int,
    out: Path | None,
    *,
    engine: str,
    chat_template: str | None,
    mixes: bool,
    on_top: bool,
    teacher: bool,
    card: bool,
) -> None:
    """Raises ValueError for what cannot be read. chat_template: its text."""
    from pad_vllm.adapter.adapter_folder import CARD_FILE
    from pad_vllm.adapter.manifest import read_config
    from pad_vllm.steering.guided_answers import DecodingSettings
    from pad_vllm.steering.steering_report import SteeringSettings, measure_steering
    from pad_vllm.training.report.model_card import model_card_text as described
    from pad_vllm.training.sampling.sample_responses import read_prompts

    if engine not in ENGINES:
        raise ValueError(f"--engine {engine}: accepted are {listed(ENGINES)}")
    config = read_config(adapter)
    if engine != "shared":  # its worker fetches nothing
        resolve_base(config.backbone.name)
    dtype = sampling_dtype()
    asked = SteeringSettings(
        base,
        str(adapter),
        read_prompts(prompts),
        read_prompts(judge_prompts) if judge_prompts else (),
        _adapters(beside),
        betas,
        beside_betas,
        tuple(DecodingSettings(temperature=t, tokens=tokens, dtype=dtype) for t in temperatures),
        mixes,
        on_top,
        teacher,
        name_value_pairs("--told", told, "one sentence a dimension"),
        engine,
        chat_template,
    )
    found = measure_steering(asked, typer.echo, out.with_suffix(".answers.json") if out else None)
    result = {"command": command_line_as_typed(), **found}
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if card:
        said = described(config, result)
        (adapter / CARD_FILE).write_text(said, "utf-8")


def _adapters(beside: Sequence[str]) -> dict[str, str]:
    found = name_value_pairs("--beside", beside, "one adapter a name")
    for name, folder in found.items():
        if not name or not folder:
            raise ValueError(
                f"--beside {name or folder}: NAME=ADAPTER is accepted, a name and a folder"
            )
    return found
