"""`pad-vllm dose`: chooses an adapter's strengths and guard by drawn answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.adapter.manifest import MAX_BETA
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import (
    AdapterArgument,
    BackboneOption,
    DtypeOption,
    command_line_as_typed,
    device_dtype,
)

_BETAS, _MIN_PS, _PREFIX_BETAS = ("0.4", "0.8", "1.2", "1.8"), (0.15, 0.05), (0.7, 1.0, 1.3, 1.6)
"""What is tried where nothing else is typed."""


def dose(
    adapter: AdapterArgument,
    base: BackboneOption,
    out: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts to answer: .jsonl of {"prompt": text or messages}, or .txt with a prompt per line '
            "(default: the 40 judge prompts that ship with the package). Use others than for `steer`.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Number of prompts (default: all).")
    ] = None,
    beta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BETA[:MIN_P]",
            help="Strength of heads to try, under one min-p guard or under each of --min-p; once for each "
            "(default: 0.4, 0.8, 1.2 and 1.8).",
        ),
    ] = None,
    min_p: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            max=1,
            help="Min-p guard of heads to try; once for each (default: 0.15 and 0.05).",
        ),
    ] = None,
    prefix_beta: Annotated[
        list[float] | None,
        typer.Option(
            min=0,
            help="Strength of learned prefixes to try; once for each (default: 0.7, 1, 1.3 and 1.6).",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 0.7,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    dtype: DtypeOption = None,
) -> None:
    """Choose an adapter's strengths and guard by drawn answers.

    Every prompt is answered unguided, with each instruction in the prompt,
    and guided at every strength. The new adapter has, for each dimension and
    learned prefix, the strength that goes furthest and costs no more fluency
    than asking in the prompt. The heads are scaled to it: pad_beta stays one
    number for all dimensions.
    """
    with report_errors():
        from dataclasses import replace

        from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
        from pad_vllm.steering.dimension_judges import load_judges
        from pad_vllm.steering.dose import choose_dose, dose_table
        from pad_vllm.steering.dose_trial import DoseGrid, DoseTrial
        from pad_vllm.steering.evaluation_prompts import JUDGE_PROMPTS
        from pad_vllm.steering.guided_answers import DecodingSettings
        from pad_vllm.training.report.model_card import model_card_text
        from pad_vllm.training.sampling.sample_responses import read_prompts

        loaded = load_adapter(resolve_adapter(adapter, base))
        grid = DoseGrid(
            _head_points(beta or _BETAS, min_p or _MIN_PS), prefix_beta or _PREFIX_BETAS
        )
        decoding = DecodingSettings(
            temperature,
            tokens,
            dtype=dtype or device_dtype(),
            chat_template=loaded.config.chat_template,
        )
        conversations = read_prompts(prompts or JUDGE_PROMPTS)[:limit]
        points = grid.points(loaded.config)
        trial = DoseTrial(base, str(loaded.path), conversations, points, decoding)
        out.mkdir(parents=True, exist_ok=True)
        answers = trial.answers(out.with_name(f"{out.name}.answers.json"), typer.echo)
        rows = trial.rows(answers, load_judges(base, decoding, trial.instructions))
        chosen = choose_dose(rows)
        table = dose_table(rows, chosen)
        typer.echo("\n".join(table))
        dosed = chosen.applied_to(loaded)
        record = {
            "command": command_line_as_typed(),
            "prompts": len(conversations),
            "tokens": tokens,
            "temperature": temperature,
            "table": table,
        }
        config = replace(dosed.config, training={**dosed.config.training, "dose": record})
        save_adapter(replace(dosed, config=config), out, model_card_text(config, None))
        typer.echo(f"wrote {out}")


def _head_points(betas: Sequence[str], min_ps: Sequence[float]) -> list[tuple[float, float]]:
    """(beta, guard) of each BETA:MIN_P, and of each BETA with every guard. Raises ValueError."""
    points: list[tuple[float, float]] = []
    for text in betas:
        beta, colon, own_guard = text.partition(":")
        try:
            guards = [float(own_guard)] if colon else min_ps
            found = [(float(beta), guard) for guard in guards]
        except ValueError:
            found = [(-1.0, 0.0)]
        if not all(0 <= strength <= MAX_BETA and 0 <= guard <= 1 for strength, guard in found):
            raise ValueError(
                f"--beta {text}: BETA or BETA:MIN_P is accepted, such as 0.8 or 0.6:0.03, MIN_P from 0 to 1"
            )
        points += found
    return points
