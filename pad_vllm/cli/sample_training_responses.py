"""`pad-vllm sample`: prompts in, responses of the base out, or of the base under guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.cli.error_reporting import plain_errors
from pad_vllm.cli.shared_options import Base, ChatTemplate, Out, drawing_dtype, template_of
from pad_vllm.params import BETA, WEIGHTS, parse


def sample(
    base: Base,
    prompts: Annotated[
        Path, typer.Option(help='.jsonl of {"prompt": text or messages}, or .txt, a prompt a line.')
    ],
    out: Out,
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
    chat_template: ChatTemplate = None,
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
    with plain_errors():
        build = {} if adapter is None else {"build": _guided(adapter, weights, beta)}
        if adapter is None and (weights, beta) != (None, None):
            raise ValueError("--weights and --beta are of --adapter. Add it, or leave them out")
        from pad_vllm.training.sampling.sample_responses import declined_path, draw, read_prompts
        from pad_vllm.training.sampling.vllm_sampler import Sampling

        sampling = Sampling(
            n,
            max_tokens,
            temperature,
            top_k,
            seed,
            max_model_len,
            chat_template=template_of(chat_template),
            dtype=drawing_dtype(),
        )
        done = draw(base, read_prompts(prompts), out, sampling, batch=batch, ray=ray, **build)
    typer.echo(f"{out}: {done.drawn} prompts drawn for, {done.known} were done before")
    if done.declined:
        where = declined_path(out)
        typer.echo(f"{done.declined} declined, reasons in {where} (remove it to try them again)")


def _guided(adapter: str, weights: str | None, beta: float | None) -> Any:
    """A Build; ValueError where its requests would be refused."""
    from pad_vllm.config import PADConfig
    from pad_vllm.serving.start.served_adapters import limits
    from pad_vllm.training.sampling.guided_sampling import RANDOM, Guided

    folder, weights = resolve_adapter(adapter), weights or RANDOM
    accepted = limits(PADConfig(adapter=folder))
    asked = dict.fromkeys(accepted.dimensions, 1) if weights == RANDOM else weights
    parse({WEIGHTS: asked, **({} if beta is None else {BETA: beta})}, accepted)
    return Guided(folder, accepted.dimensions, weights, beta)
