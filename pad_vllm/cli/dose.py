"""`pad-vllm dose`: chooses an adapter's strengths and guard by drawn answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import (
    AdapterArgument,
    BackboneOption,
    DtypeOption,
    command_line_as_typed,
    device_dtype,
)


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
        list[float] | None,
        typer.Option(min=0, help="Strength of heads to try; once for each."),
    ] = None,
    min_p: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Min-p guard of heads to try; once for each."),
    ] = None,
    prefix_beta: Annotated[
        list[float] | None,
        typer.Option(min=0, help="Strength of learned prefixes to try; once for each."),
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
        default = DoseGrid()
        grid = DoseGrid(
            beta or default.betas, min_p or default.min_ps, prefix_beta or default.prefix_betas
        )
        decoding = DecodingSettings(
            temperature,
            tokens,
            dtype=dtype or device_dtype(),
            chat_template=loaded.config.chat_template,
        )
        conversations = read_prompts(prompts or JUDGE_PROMPTS)[:limit]
        trial = DoseTrial(base, str(loaded.path), conversations, grid, decoding)
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
