"""`pad-vllm sample`: prompts in, responses of the base out, or of the base under guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import (
    BaseArgument,
    ChatTemplateOption,
    JsonLinesOutput,
    chat_template_text,
    sampling_dtype,
)
from pad_vllm.params import BETA, WEIGHTS, parse_guidance


def sample(
    base: BaseArgument,
    prompts: Annotated[
        Path, typer.Option(help='.jsonl of {"prompt": text or messages}, or .txt, a prompt a line.')
    ],
    out: JsonLinesOutput,
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Responses a prompt.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens a response.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.01)] = 0.8,
    top_k: Annotated[
        int,
        typer.Option(
            min=2,
            help="Candidates a token is drawn from. Must be the top-k of decoding (pad_top_k), so "
            "that every sampled token is in the set that the reward is trained to choose from.",
        ),
    ] = 20,
    seed: Annotated[int, typer.Option(help="The engine's.")] = 0,
    max_model_len: Annotated[
        int, typer.Option(help="Prompt and response, in tokens; prompts without room are declined.")
    ] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Prompts between two writes.")] = 128,
    ray: Annotated[
        int, typer.Option(min=0, help="Draw through Ray Data with this many engines; 0: in here.")
    ] = 0,
    chat_template: ChatTemplateOption = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Folder of a PAD adapter, or `demo`: draw from BASE guided by it."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="With --adapter: pad_weights of every response, or `random`, other ones for each "
            "(default). Each response says by what it was guided."
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="With --adapter: its strength (default: the adapter's).")
    ] = None,
) -> None:
    """Draw responses of BASE to your prompts, through vLLM: of BASE itself, or guided by an adapter."""
    with report_errors():
        build = {} if adapter is None else {"build": _guided(adapter, weights, beta)}
        if adapter is None and (weights, beta) != (None, None):
            raise ValueError("--weights and --beta are of --adapter. Add it, or leave them out")
        from pad_vllm.training.sampling.sample_responses import (
            failed_prompts_path,
            read_prompts,
            sample_responses,
        )
        from pad_vllm.training.sampling.vllm_sampler import SamplingOptions

        sampling = SamplingOptions(
            n,
            max_tokens,
            temperature,
            top_k,
            seed,
            max_model_len,
            chat_template=chat_template_text(chat_template),
            dtype=sampling_dtype(),
        )
        done = sample_responses(
            base, read_prompts(prompts), out, sampling, batch=batch, ray=ray, **build
        )
    typer.echo(f"{out}: {done.sampled} prompts drawn for, {done.already_done} were done before")
    if done.failed:
        where = failed_prompts_path(out)
        typer.echo(f"{done.failed} declined, reasons in {where} (remove it to try them again)")


def _guided(adapter: str, weights: str | None, beta: float | None) -> Any:
    """A Build; ValueError where its requests would be refused."""
    from pad_vllm.config import PADConfig
    from pad_vllm.serving.start.served_adapters import served_limits
    from pad_vllm.training.sampling.guided_sampling import RANDOM_WEIGHTS, GuidedEngineBuilder

    folder, weights = resolve_adapter(adapter), weights or RANDOM_WEIGHTS
    accepted = served_limits(PADConfig(adapter=folder))
    asked = dict.fromkeys(accepted.dimensions, 1) if weights == RANDOM_WEIGHTS else weights
    parse_guidance({WEIGHTS: asked, **({} if beta is None else {BETA: beta})}, accepted)
    return GuidedEngineBuilder(folder, accepted.dimensions, weights, beta)
