"""Samples several responses to each prompt from a model, in this process or by Ray on many machines.

In: a JSONL of {"prompt": text or messages}, or a text file with a prompt a line. Out: a JSONL of
PreferenceRecords, and beside it OUT.declined.jsonl, {"prompt", "declined": reason}, for prompts that gave no
two responses. Both are appended as batches finish; a second call samples only for prompts in neither. Knows
nothing of engines (vllm_sampler.py) or scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_vllm.text.conversation import Conversation, require_known_roles
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import Drawing
from pad_vllm.training.progress_bar import progress_bar
from pad_vllm.training.sampling.vllm_sampler import (
    EngineBuilder,
    ResponseSampler,
    SamplingOptions,
    build_vllm_engine,
    drawing,
)
from pad_vllm.wording import listed

_FORMS = '{"prompt": text} or {"prompt": [{"role": "user", "content": text}, ...]}, user turn last'


@dataclass
class SamplingCounts:
    """How many prompts one call of `sample_responses` worked on."""

    sampled: int = 0
    """Prompts with new responses."""

    already_done: int = 0
    """Prompts that one of the two files held before."""

    failed: int = 0
    """Prompts that this call added to the file of failures, with the reason."""


def failed_prompts_path(out: Path) -> Path:
    """The file of the prompts without responses; remove it to try them again."""
    return out.with_suffix(".declined.jsonl")


def read_prompts(path: Path) -> list[Conversation]:
    """The prompts of a .jsonl or .txt file, each once, in the file's order.

    Raises ValueError for another kind of file, and for a line that is no prompt, with its number.
    """
    if path.suffix == ".jsonl":
        return list(dict.fromkeys(jsonl.read_lines(path, _parse_line)))
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        return list(dict.fromkeys(_parse({"prompt": s.strip()}) for s in lines if s.strip()))
    raise ValueError(
        f"prompts {path}: accepted are .jsonl, lines of {_FORMS}; .txt, a prompt a line"
    )


def _parse_line(line: bytes) -> Conversation:
    return _parse(json.loads(line))


def _parse(line: Any) -> Conversation:
    """The conversation of {"prompt": text or messages}."""
    value = line.get("prompt") if isinstance(line, dict) else None
    if isinstance(value, str | list) and value != []:
        prompt = require_known_roles(Conversation.model_validate(value))
        if prompt[-1].role == "user":
            return prompt
    raise ValueError(f"{json.dumps(line)[:80]} is no prompt. Accepted: {_FORMS}")


def remaining_prompts(prompts: Sequence[Conversation], out: Path) -> list[Conversation]:
    """The prompts that neither `out` nor its file of failures holds. Repairs the last line of both."""
    done: set[Conversation] = set()
    for path in (out, failed_prompts_path(out)):
        jsonl.repair_last_line(path)
        done.update(jsonl.read_lines(path, _parse_line))
    return [prompt for prompt in prompts if prompt not in done]


def sample_responses(
    base: str,
    prompts: Sequence[Conversation],
    out: Path,
    sampling: SamplingOptions | None = None,
    *,
    batch_size: int = 128,
    ray_actors: int = 0,
    build: EngineBuilder = build_vllm_engine,
) -> SamplingCounts:
    """Sample responses to the prompts that `out` does not hold yet, and append them.

    Args:
        base: a name of `pad-vllm models`, a folder or a hub name.
        prompts: different ones, of `read_prompts`.
        out: the JSONL; its failures go to `failed_prompts_path(out)`.
        sampling: how to sample; None: the defaults.
        batch_size: prompts between two writes.
        ray_actors: how many Ray actors have an engine each; 0: one engine in this process.
        build: makes an engine.

    Returns:
        How many prompts were sampled, were there before, and failed.

    Raises:
        ValueError: a line of the files is no prompt; the base has no chat template; `out` has answers that
            were drawn by another base or in another way.
    """
    remaining = remaining_prompts(prompts, out)
    sampling = sampling or SamplingOptions()
    if remaining:
        _require_drawn_alike(out, drawing(base, sampling))
    counts = SamplingCounts(already_done=len(prompts) - len(remaining))
    if not remaining:
        return counts
    texts = [prompt.to_json() for prompt in remaining]
    sampler = (base, sampling, build)
    results = (
        _sample_through_ray(texts, batch_size, ray_actors, sampler)
        if ray_actors
        else _sample_in_process(texts, batch_size, sampler)
    )
    _append_results(results, out, counts, total=len(prompts))
    return counts


def _require_drawn_alike(out: Path, now: Drawing) -> None:
    """Raise ValueError if a line of `out` says that its answers were drawn otherwise."""
    for line in jsonl.read_lines(out, bytes):
        stated = json.loads(line).get("drawn_by")
        if not stated:  # of an earlier release
            continue
        before = Drawing.model_validate(stated)
        same_weights = "base" if None in (before.fingerprint, now.fingerprint) else "fingerprint"
        compared = ("temperature", "top_k", "max_tokens", same_weights)
        names = [name for name in compared if getattr(before, name) != getattr(now, name)]
        if names:
            each = (f"{n} was {getattr(before, n)}, now {getattr(now, n)}" for n in names)
            raise ValueError(
                f"{out} has answers that were drawn otherwise: {listed(each)}. Ask for the same, or give "
                "another --out"
            )


def _append_results(
    results: Iterable[dict[str, Any]], out: Path, counts: SamplingCounts, total: int
) -> None:
    """Write each batch of results (ResponseSampler) to the two files as it comes, and count it."""
    with (
        jsonl.line_appender(out) as append_record,
        jsonl.line_appender(failed_prompts_path(out)) as append_failure,
        progress_bar("sampling", total, done=counts.already_done) as advance,
    ):
        for result in results:
            for line, failed in zip(result["line"], result["failed"], strict=True):
                (append_failure if failed else append_record)(line)
            failures = int(sum(result["failed"]))
            counts.failed += failures
            counts.sampled += len(result["line"]) - failures
            advance(len(result["line"]))


_SamplerArguments = tuple[str, SamplingOptions, EngineBuilder]
"""Of ResponseSampler."""


def _sample_in_process(
    texts: list[str], batch_size: int, sampler: _SamplerArguments
) -> Iterator[dict[str, Any]]:
    """Results of ResponseSampler, batch by batch. texts: conversations as JSON."""
    sample = ResponseSampler(*sampler)
    for start in range(0, len(texts), batch_size):
        yield sample({"prompt": texts[start : start + batch_size]})


def _sample_through_ray(
    texts: list[str], batch_size: int, actors: int, sampler: _SamplerArguments
) -> Iterable[dict[str, Any]]:
    """The same through Ray Data with an engine in each actor; batches come as they finish.

    An actor takes a GPU if the cluster has any. Joins the cluster of RAY_ADDRESS, or starts one on this
    machine.
    """
    import ray
    from ray.data import ActorPoolStrategy

    if not ray.is_initialized():
        ray.init()
    blocks = max(actors, -(-len(texts) // batch_size))  # so that no actor waits for another's block
    dataset = ray.data.from_items([{"prompt": t} for t in texts], override_num_blocks=blocks)
    return dataset.map_batches(
        ResponseSampler,
        fn_constructor_args=sampler,
        batch_size=batch_size,
        compute=ActorPoolStrategy(size=actors),
        num_gpus=1 if ray.cluster_resources().get("GPU") else None,
    ).iter_batches(batch_size=None)
