"""The requests that every runner is tested with: 20 prompts under four preferences, and unguided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = 5  # requests a prompt in `mixed_batch`, the last of them unguided
PROMPTS = (
    "The best thing about rain is",
    "Dear neighbour, I am writing because",
    "To bake bread you need",
    "The old lighthouse keeper opened the door and",
    "Question: Why do cats purr?\nAnswer:",
    "My three favourite cities are",
    "def average(numbers):\n",
    "In 1969, the first people",
    "She laughed so hard that",
    "The doctor said I should",
    "A short poem about winter:\n",
    "The difference between a lake and a pond is",
    "Review: the soup was cold and the waiter",
    "If I had a million dollars,",
    "Once upon a time, a small robot",
    "The teacher asked the class to",
    "Tips for a good night's sleep:\n1.",
    "He looked at the broken bicycle and",
    "Water boils at",
    "Thank you for your letter. I",
)


def preferences(adapter: Path) -> list[dict[str, Any]]:
    """extra_args of four kinds: one dimension; another one with other settings; a mix; a negative one. The
    last two are guarded against loops, the second and the third against unlikely tokens.
    """
    from pad_vllm.adapter.manifest import read_config

    names = read_config(adapter).dimensions
    first, second, last = names[0], names[1 % len(names)], names[-1]
    return [
        {"pad_weights": f"{first}=1"},
        {"pad_weights": f"{second}=1", "pad_beta": 4.0, "pad_top_k": 5, "pad_min_p": 0.01},
        {
            "pad_weights": f"{first}=0.7,{second}=-0.4,{last}=1.2",
            "pad_beta": 1.5,
            "pad_top_k": 20,
            "pad_no_repeat": 3,
            "pad_min_p": 0.2,
        },
        {"pad_weights": f"{last}=-1", "pad_beta": 3, "pad_no_repeat": 2},
    ]


def greedy(
    prompt: str | list[int], tokens: int, extra_args: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One request of exactly `tokens` greedy tokens."""
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    if extra_args is not None:
        sampling["extra_args"] = extra_args
    return {"prompt": prompt, "sampling": sampling}


def mixed_batch(
    adapter: Path, prompts: list[Any] | tuple[Any, ...], tokens: int
) -> list[dict[str, Any]]:
    """Every prompt under every preference and unguided, neighbours in the batch of another kind."""
    kinds = [*preferences(adapter), None]
    return [greedy(prompt, tokens, kind) for prompt in prompts for kind in kinds]


def tokens(result: dict[str, Any]) -> list[list[int]]:
    """Token ids of each request's answer."""
    return [output["token_ids"] for output in result["outputs"]]


def share_changed(result: dict[str, Any]) -> float:
    """Share of a mixed batch's guided requests whose answer is not that of the unguided one beside them."""
    answers = tokens(result)
    guided = [i for i in range(len(answers)) if i % KINDS != KINDS - 1]
    return sum(answers[i] != answers[i - i % KINDS + KINDS - 1] for i in guided) / len(guided)
