"""`pad-vllm sample`: prompts in, several responses to each out, of the base or guided by an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pad_vllm.argument_names import BETA, WEIGHTS
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.cli.shared_options import (
    BaseArgument,
    ChatTemplateOption,
    JsonLinesOutput,
    VLLMOption,
    chat_template_text,
    device_dtype,
    vllm_arguments,
)
from pad_vllm.params import parse_guidance


def sample(
    base: BaseArgument,
    prompts: Annotated[
        Path,
        typer.Option(
            help='.jsonl of {"prompt": text or messages}, or .txt with a prompt on each line.'
        ),
    ],
    out: JsonLinesOutput,
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Responses to each prompt.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 0.8,
    top_k: Annotated[
        int,
        typer.Option(
            min=2,
            help="Candidates that a token is sampled from. Use the top-k of decoding (pad_top_k), so "
            "that every sampled token is in the set that the reward is trained to choose from.",
        ),
    ] = 20,
    seed: Annotated[int, typer.Option(help="The engine's seed.")] = 0,
    max_model_len: Annotated[
        int,
        typer.Option(
            help="Tokens of prompt and response together. A prompt that leaves no room for --max-tokens "
            "fails, and is listed in OUT's .declined.jsonl."
        ),
    ] = 1024,
    batch: Annotated[int, typer.Option(min=1, help="Prompts between two writes to OUT.")] = 128,
    ray: Annotated[
        int,
        typer.Option(
            min=0, help="Sample through Ray Data with this many engines; 0: in this process."
        ),
    ] = 0,
    chat_template: ChatTemplateOption = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Folder of a PAD adapter, or `demo`: sample from BASE guided by it."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="With --adapter: pad_weights of every response; or `random` (default), different ones for "
            "each. OUT has the weights of each response."
        ),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="With --adapter: pad_beta of every response (default: the adapter's)."),
    ] = None,
    vllm: VLLMOption = None,
) -> None:
    """Sample several responses to each prompt, through vLLM: of BASE itself, or guided by an adapter."""
    with report_errors():
        build = {} if adapter is None else {"build": _guided_builder(adapter, weights, beta)}
        if adapter is None and (weights, beta) != (None, None):
            raise ValueError("--weights and --beta are of --adapter. Add it, or leave them out")
        from pad_vllm.training.sampling.sample_responses import (
            failed_prompts_path,
            read_prompts,
            remaining_prompts,
            sample_responses,
        )
        from pad_vllm.training.sampling.vllm_sampler import SamplingOptions

        sampling = SamplingOptions(
            n=n,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            max_model_len=max_model_len,
            chat_template=chat_template_text(chat_template),
            dtype=device_dtype(),
            engine_arguments=vllm_arguments(vllm or ()),
        )
        wanted = read_prompts(prompts)
        missing = n * len(remaining_prompts(wanted, out))
        typer.echo(f"drawing {missing:,} answers of at most {max_tokens} tokens")
        counts = sample_responses(
            base,
            wanted,
            out,
            sampling,
            batch_size=batch,
            ray_actors=ray,
            **build,
        )
    typer.echo(f"{out}: {counts.sampled} prompts sampled, {counts.already_done} were done before")
    if counts.failed:
        path = failed_prompts_path(out)
        typer.echo(f"{counts.failed} failed, reasons in {path} (remove it to try them again)")


def _guided_builder(adapter: str, weights: str | None, beta: float | None) -> Any:
    """A GuidedEngineBuilder. Raises ValueError if the server would refuse its requests."""
    from pad_vllm.config import PADConfig
    from pad_vllm.serving.start.served_adapters import served_limits
    from pad_vllm.training.sampling.guided_sampling import RANDOM_WEIGHTS, GuidedEngineBuilder

    folder, weights = resolve_adapter(adapter), weights or RANDOM_WEIGHTS
    limits = served_limits(PADConfig(adapter=folder))
    checked = dict.fromkeys(limits.dimensions, 1) if weights == RANDOM_WEIGHTS else weights
    parse_guidance({WEIGHTS: checked, **({} if beta is None else {BETA: beta})}, limits)
    return GuidedEngineBuilder(
        adapter=folder, dimensions=limits.dimensions, weights=weights, beta=beta
    )
