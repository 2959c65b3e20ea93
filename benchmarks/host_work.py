"""What do the `resident` and `ray` engines cost on the host, beside their models? No model runs.

    TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 python benchmarks/host_work.py

64 guided rows of 8,000 tokens take steps of one token and ten candidates each, once with the base's tokenizer
in the reward model (SmolLM2) and once with another (SmolLM2 beside Gemma 3). Timed are the engine up to the
asks (`engine`), the scorer with a decoder that computes nothing (`scorer`), and the updates that `ray` would
send (`updates`); then the opening of a prompt of 100,000 tokens. Medians of this process's own time, in
milliseconds; prints one JSON line.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import arguments
import torch
from transformers import AutoTokenizer

from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.engines.actor_timeout import ActorTimeout
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.ray_actors import PooledActor
from pad_vllm.engines.resident_engine import ResidentRewards
from pad_vllm.engines.reward_engine import GuidedRequest, StepCandidates
from pad_vllm.engines.reward_model.reward_scorer import RewardScorer
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest
from pad_vllm.params import Guidance
from pad_vllm.text.token_alignment import TokenAligner

ROWS, LENGTH, K, H, STEPS = 64, 8_000, 10, 64, 20
TEXT = (
    "The dog barks at the other dog, and nobody in the garden knows why it should be afraid of it. "
)


class Nothing:
    """A decoder that computes nothing."""

    num_blocks, max_positions, device = ROWS * LENGTH // 8, 10 * LENGTH, torch.device("cpu")
    kv_caches: dict[int, torch.Tensor] = {}  # noqa: RUF012, no layer has one
    lm_head_weight = torch.zeros(300_000, H)

    def forward(self, _ids: Any, _at: Any, _batch: Any, wanted: torch.Tensor) -> Any:
        return torch.zeros(2, len(wanted), H).unbind()

    def copy_block(self, _source: int, _target: int) -> None:
        pass


class Timed:
    """A scorer that notes what scoring and the updates take."""

    def __init__(self) -> None:
        heads = SimpleNamespace(heads=(torch.zeros(2, 4, H), torch.zeros(2, H, 4), None))
        declined = FailureLog(print)
        self.scorer = RewardScorer(Nothing(), heads, declined, exact=True, budget=4096)  # type: ignore[arg-type]
        handle = SimpleNamespace(step=SimpleNamespace(remote=len))
        self.actor = PooledActor(handle, 0, ActorTimeout(1.0, time.monotonic))
        self.scored, self.updated = 0.0, 0.0

    def __call__(self, asks: Sequence[ScoringRequest]) -> torch.Tensor:
        self.updated = seconds(lambda: self.actor.send_step(asks))
        begun = time.process_time()
        rewards = self.scorer(asks)
        self.scored = time.process_time() - begun
        return rewards


def seconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def steps(base: Any, persrm: Any) -> dict[str, float]:
    """Milliseconds a step of all rows."""
    scores, draw = Timed(), random.Random(0)
    engine = ResidentRewards(TokenAligner(base, persrm), scores, FailureLog(print))
    words = base.encode(TEXT * (LENGTH // 15))
    requests = [
        GuidedRequest(Guidance((1.0, 1.0), 1.0, K), [*draw.sample(words, 20), *words[:LENGTH]], 20)
        for _ in range(ROWS)
    ]
    rows, w = torch.arange(ROWS), torch.ones(ROWS, 2)
    taken = []
    for number in range(STEPS):
        fed = [words[(7 * row + number) % 1000] for row in range(ROWS)]
        at = [len(request.tokens) - (number == 0) for request in requests]
        last = [request.tokens[-1] for request in requests] if number == 0 else fed
        engine.receive(torch.tensor(list(zip(last, at, strict=True))))
        ids = torch.tensor([draw.sample(words[:500], K) for _ in range(ROWS)])
        step = StepCandidates(ROWS, rows, ids, w, tuple(requests))
        whole = seconds(lambda step=step: engine.rewards(step))  # type: ignore[misc]
        taken.append((whole - scores.scored - scores.updated, scores.scored, scores.updated))
    parts = zip(*taken[2:], strict=True)
    return {
        name: round(1e3 * statistics.median(part), 2)
        for name, part in zip(("engine", "scorer", "updates"), parts, strict=True)
    }


def opening(base: Any, persrm: Any, *, tokens: int = 100_000) -> float:
    """Milliseconds that a long prompt takes when its request joins."""
    reader = TokenAligner(base, persrm)
    turn = [{"role": "user", "content": TEXT * (tokens // 21)}]
    prompt = base.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    return round(
        1e3 * statistics.median(seconds(lambda: reader.start(prompt)) for _ in range(3)), 1
    )


def main() -> None:
    """See the module's docstring."""
    asked = arguments.parser(__doc__, base=None, adapter=None, out="/dev/null").parse_args()
    torch.set_num_threads(1)
    smol, gemma = (
        AutoTokenizer.from_pretrained(resolve_base(name))
        for name in ("smollm2-135m", "gemma3-270m")
    )
    figures: dict[str, Any] = {}
    for name, persrm in (("same tokenizer", smol), ("another tokenizer", gemma)):
        figures[name] = {**steps(smol, persrm), "opening": opening(smol, persrm)}
        print(f"{name}: {figures[name]}")
    line = json.dumps({"rows": ROWS, "tokens": LENGTH, "candidates": K, "milliseconds": figures})
    asked.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
