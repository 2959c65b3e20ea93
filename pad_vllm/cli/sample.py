"""`pad-vllm sample`: prompts in, responses of the base out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pad_vllm.cli.arguments import Base, ChatTemplate, Out, drawing_dtype, template_of
from pad_vllm.cli.errors import plain_errors


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
) -> None:
    """Draw responses of BASE itself to your prompts, through vLLM."""
    with plain_errors():
        from pad_vllm.training.sampling.sample import declined_path, draw, read_prompts
        from pad_vllm.training.sampling.sampler import Sampling

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
        done = draw(base, read_prompts(prompts), out, sampling, batch=batch, ray=ray)
    typer.echo(f"{out}: {done.drawn} prompts drawn for, {done.known} were done before")
    if done.declined:
        where = declined_path(out)
        typer.echo(f"{done.declined} declined, reasons in {where} (remove it to try them again)")
