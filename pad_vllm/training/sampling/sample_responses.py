"""Draws several responses a prompt from the base model, in this process or by Ray on many machines.

In: a JSONL of {"prompt": text or messages}, or a text file with a prompt a line. Out: a JSONL of
Records, and beside it OUT.declined.jsonl, {"prompt", "declined": reason}, for prompts that gave no two
responses. Both are appended as batches finish; a second call draws only for prompts in neither. Knows
nothing of engines (sampler.py) or scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import Message
from pad_vllm.training.progress_bar import progress_bar
from pad_vllm.training.sampling.vllm_sampler import (
    EngineBuilder,
    ResponseSampler,
    SamplingOptions,
    build_vllm_engine,
)

_MESSAGES = TypeAdapter(list[Message])
_FORMS = '{"prompt": text} or {"prompt": [{"role": "user", "content": text}, ...]}, user turn last'


@dataclass
class SamplingCounts:
    """What one call did: prompts drawn for, prompts that out held already, and prompts declined."""

    sampled: int = 0
    already_done: int = 0
    failed: int = 0


def failed_prompts_path(out: Path) -> Path:
    """Where the prompts without responses are; remove it to try them again."""
    return out.with_suffix(".declined.jsonl")


def read_prompts(path: Path) -> list[str]:
    """The prompts as keys (messages as JSON), each once; .jsonl or .txt by the file's name."""
    if path.suffix == ".jsonl":
        return list(dict.fromkeys(jsonl.read_lines(path, _parse)))
    if path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        return list(dict.fromkeys(_key({"prompt": s.strip()}) for s in lines if s.strip()))
    raise ValueError(
        f"prompts {path}: accepted are .jsonl, lines of {_FORMS}; .txt, a prompt a line"
    )


def _parse(line: bytes) -> str:
    return _key(json.loads(line))


def _key(line: Any) -> str:
    """A prompt's messages as JSON, also where it is given as text: its identity in batches and files."""
    value = line.get("prompt") if isinstance(line, dict) else None
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    messages = _MESSAGES.validate_python(value) if isinstance(value, list) else []
    if not messages or messages[-1].role != "user":
        raise ValueError(f"{json.dumps(line)[:80]} is no prompt. Accepted: {_FORMS}")
    return json.dumps([message.model_dump() for message in messages], ensure_ascii=False)


def remaining_prompts(prompts: Sequence[str], out: Path) -> list[str]:
    """Those that neither out nor the file of the declined holds; torn last lines are cut off."""
    known: set[str] = set()
    for path in (out, failed_prompts_path(out)):
        jsonl.repair_last_line(path)
        known.update(jsonl.read_lines(path, _parse))
    return [prompt for prompt in prompts if prompt not in known]


def sample_responses(
    base: str,
    prompts: Sequence[str],
    out: Path,
    sampling: SamplingOptions | None = None,
    *,
    batch: int = 128,
    ray: int = 0,
    build: EngineBuilder = build_vllm_engine,
) -> SamplingCounts:
    """Draw for the prompts of read_prompts that out does not hold; ray is the number of its actors."""
    todo = remaining_prompts(prompts, out)
    counts = SamplingCounts(already_done=len(prompts) - len(todo))
    if not todo:
        return counts
    batches = _through_ray if ray else _in_process
    results = batches(todo, batch, ray, (base, sampling or SamplingOptions(), build))
    with (
        jsonl.line_appender(out) as keep,
        jsonl.line_appender(failed_prompts_path(out)) as decline,
        progress_bar("sampling", len(prompts), done=counts.already_done) as advance,
    ):
        for result in results:
            for line, declined in zip(result["line"], result["declined"], strict=True):
                (decline if declined else keep)(line)
            refused = int(sum(result["declined"]))
            counts.failed += refused
            counts.sampled += len(result["line"]) - refused
            advance(len(result["line"]))
    return counts


def _in_process(todo: list[str], batch: int, _: int, engine: tuple) -> Iterator[dict[str, Any]]:
    sampler = ResponseSampler(*engine)
    for start in range(0, len(todo), batch):
        yield sampler({"prompt": todo[start : start + batch]})


def _through_ray(
    todo: list[str], batch: int, actors: int, engine: tuple
) -> Iterable[dict[str, Any]]:
    """The same through Ray Data with an engine in each actor; batches come as they finish.

    An actor takes a GPU where the cluster has any. Joins the cluster of RAY_ADDRESS, or starts one here.
    """
    import ray
    from ray.data import ActorPoolStrategy

    if not ray.is_initialized():
        ray.init()
    blocks = max(actors, -(-len(todo) // batch))  # so that no actor waits for another's block
    drawn = ray.data.from_items([{"prompt": p} for p in todo], override_num_blocks=blocks)
    return drawn.map_batches(
        ResponseSampler,
        fn_constructor_args=engine,
        batch_size=batch,
        compute=ActorPoolStrategy(size=actors),
        num_gpus=1 if ray.cluster_resources().get("GPU") else None,
    ).iter_batches(batch_size=None)
