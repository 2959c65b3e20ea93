"""Draws several responses a prompt from the base model through vLLM's offline engine.

In: a JSONL of {"prompt": text}. Out: a JSONL of {"prompt", "responses": [{"text", "token_ids"}]},
one line a prompt, appended as they finish, so that a second call continues where the first stopped.
Sampling keeps the base's own top-k, so that every token lies in the candidate set that
decoding rescores (see trainer.py). Knows nothing of scores or rewards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a JSONL file; a file that is not there holds none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def batches(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def sample(
    base: str,
    prompts: list[str],
    out: Path,
    *,
    n: int = 4,
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 20,
    seed: int = 0,
    batch: int = 64,
) -> None:
    """Append `n` responses for every prompt that `out` does not hold yet."""
    from vllm import LLM, SamplingParams

    done = {record["prompt"] for record in read_jsonl(out)}
    todo = [prompt for prompt in dict.fromkeys(prompts) if prompt not in done]
    if not todo:
        return
    llm = LLM(base, max_model_len=1024, max_num_seqs=batch, seed=seed)
    # The engine's seed, not one a request: a generator a row halves the sampler's speed.
    params = SamplingParams(n=n, max_tokens=max_tokens, temperature=temperature, top_k=top_k)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        for chunk in batches(todo, batch):
            chats = [[{"role": "user", "content": prompt}] for prompt in chunk]
            for prompt, result in zip(chunk, llm.chat(chats, params), strict=True):
                responses = [
                    {"text": choice.text, "token_ids": list(choice.token_ids)}
                    for choice in result.outputs
                ]
                file.write(json.dumps({"prompt": prompt, "responses": responses}) + "\n")
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="model folder or hub name")
    parser.add_argument("--prompts", type=Path, required=True, help='JSONL of {"prompt": text}')
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", type=int, default=4, help="responses a prompt")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prompts = [record["prompt"] for record in read_jsonl(args.prompts)]
    sample(
        args.base,
        prompts,
        args.out,
        n=args.n,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
