"""`pad-vllm steer`: measures what an adapter's guidance does to answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import (
    AdapterArgument,
    ChatTemplateOption,
    DtypeOption,
    chat_template_text,
    command_line_as_typed,
    device_dtype,
    fetch_reward_backbone,
    name_value_pairs,
)
from pad_vllm.config import ENGINES
from pad_vllm.wording import listed

_DEFAULT_TEMPERATURES = (0.0, 0.7)


def steer(
    adapter: AdapterArgument,
    base: Annotated[
        str,
        typer.Option(
            help="The model that answers: the adapter's backbone, or any with --engine resident or ray."
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts to answer and judge: .jsonl of {"prompt": text or messages}, or .txt with a '
            "prompt per line (default: 60 that ship with the package). Use prompts that the adapter was not "
            "trained on.",
        ),
    ] = None,
    judge_prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Other prompts, answered to fit a judge of meaning for each dimension that has an "
            "instruction (default: 40 that ship with the package).",
        ),
    ] = None,
    meaning: Annotated[
        bool,
        typer.Option("--meaning/--no-meaning", help="Judge by meaning, by --judge-prompts."),
    ] = True,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ADAPTER", help="Another adapter on the same prompts; once for each."
        ),
    ] = None,
    beta: Annotated[
        list[float] | None, typer.Option(help="Strength; once for each (default: the adapter's).")
    ] = None,
    prefix_beta: Annotated[
        list[float] | None,
        typer.Option(
            help="Strength of the adapter's learned prefixes; once for each (default: the server's)."
        ),
    ] = None,
    beside_beta: Annotated[
        list[float] | None,
        typer.Option(help="Strength of the adapters of --beside; once for each."),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option(min=0, help="Sampling temperature; once for each (default: 0 and 0.7)."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 100,
    told: Annotated[
        list[str] | None,
        typer.Option(
            metavar='NAME="SENTENCE"',
            help="Instruction for a dimension that was not trained from one: how a user would ask for it. "
            "Once for each.",
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Where the reward model runs: `shared`, or `resident` or `ray` for another base than the "
            "adapter's backbone."
        ),
    ] = "shared",
    chat_template: ChatTemplateOption = None,
    mixes: Annotated[
        bool, typer.Option("--mixes/--no-mixes", help="Also guide by every two dimensions at once.")
    ] = True,
    on_top: Annotated[
        bool,
        typer.Option(
            "--on-top/--no-on-top",
            help="Also guide prompts that hold the instruction, at half the strength and at the whole.",
        ),
    ] = True,
    teacher: Annotated[
        bool,
        typer.Option(
            "--teacher/--no-teacher",
            help="Also judge by the teacher, the base with the instruction in its prompt. It takes most of "
            "the judges' time.",
        ),
    ] = True,
    dtype: DtypeOption = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the results into the adapter's README.md.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file for all results and answers. The answers are also stored next to it, so that "
            "the same command again judges them without drawing."
        ),
    ] = None,
) -> None:
    """Measure what an adapter's guidance does to answers.

    Every prompt is answered unguided, with the instruction in the prompt, and
    guided. Judges compare the answers; repetition, perplexity and relevance
    show whether the text stays fluent.
    """
    with report_errors():
        from pad_vllm.steering.evaluation_prompts import JUDGE_PROMPTS, STEERING_PROMPTS
        from pad_vllm.steering.guided_answers import DecodingSettings
        from pad_vllm.steering.steering_report import SteeringSettings, measure_steering
        from pad_vllm.training.sampling.sample_responses import read_prompts

        if engine not in ENGINES:
            raise ValueError(f"--engine {engine}: accepted are {listed(ENGINES)}")
        folder = Path(resolve_adapter(adapter, base))
        fetch_reward_backbone(engine, folder)
        settings = SteeringSettings(
            base=base,
            adapter=str(folder),
            prompts=read_prompts(prompts or STEERING_PROMPTS),
            judge_prompts=read_prompts(judge_prompts or JUDGE_PROMPTS) if meaning else (),
            other_adapters=_other_adapters(beside or ()),
            betas=beta or (),
            other_betas=beside_beta or (),
            prefix_betas=prefix_beta or (),
            decodings=tuple(
                DecodingSettings(temperature=value, tokens=tokens, dtype=dtype or device_dtype())
                for value in temperature or _DEFAULT_TEMPERATURES
            ),
            mixes=mixes,
            on_top=on_top,
            teacher=teacher,
            instructions=name_value_pairs("--told", told or (), "one sentence a dimension"),
            engine=engine,
            chat_template=chat_template_text(chat_template),
        )
        answer_file = out.with_suffix(".answers.json") if out else None
        metrics = measure_steering(settings, typer.echo, answer_file)
        result = {"command": command_line_as_typed(), **metrics}
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
        if card:
            _write_card(folder, result)


def _write_card(folder: Path, result: dict[str, object]) -> None:
    from pad_vllm.adapter.adapter_folder import CARD_FILE
    from pad_vllm.adapter.manifest import read_config
    from pad_vllm.training.report.model_card import model_card_text

    (folder / CARD_FILE).write_text(model_card_text(read_config(folder), result), "utf-8")


def _other_adapters(beside: Sequence[str]) -> dict[str, str]:
    """Name -> folder, of the values of --beside."""
    adapters = name_value_pairs("--beside", beside, "one adapter a name")
    for name, folder in adapters.items():
        if not name or not folder:
            raise ValueError(
                f"--beside {name or folder}: NAME=ADAPTER is accepted, a name and a folder"
            )
    return adapters
