"""What a step does on the host and with texts, by rows, length of the context and drafts.

    python -m benchmarks.speed.guard_costs --out guard_costs.json

No engine: V2's request states are tensors of the shapes that vLLM gives them, every row is guided under the
no-repeat guard, and has an answer of --answer tokens. Milliseconds, medians of --rounds, on one thread:

- rows: which rows are guided and with which numbers, after one request of the batch was replaced
- answers: the tokens of the answers so far
- guard: what the no-repeat guard compares, in PyTorch (a GPU runs a kernel)

KiB: of texts that the guard reads in a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.common import arguments
from pad_vllm.answer_tokens import repeats_ngram
from pad_vllm.engines.reward_engine import GuidedRequest
from pad_vllm.params import Guidance
from pad_vllm.serving.worker.answer_token_reader import V2AnswerTokenReader
from pad_vllm.serving.worker.batch_slots import BatchSlots

K, NO_REPEAT, VOCABULARY = 20, 3, 32_000
CPU = torch.device("cpu")


def request_states(num_rows: int, context: int, answer: int) -> Any:
    """V2's LogitsProcRequestState: prompts fill all of the context but `answer` tokens."""
    prompts = np.full(num_rows, context - answer, dtype=np.int32)
    return SimpleNamespace(
        device=CPU,
        max_num_reqs=num_rows,
        all_token_ids=SimpleNamespace(
            gpu=torch.randint(VOCABULARY, (num_rows, context), dtype=torch.int32)
        ),
        prompt_len=SimpleNamespace(np=prompts, gpu=torch.from_numpy(prompts)),
        prefill_len=SimpleNamespace(np=np.full(num_rows, context, dtype=np.int32)),
    )


def step_context(num_rows: int, context: int, drafts: int) -> tuple[np.ndarray, Any]:
    """The slot of each logits row, and V2's LogitsContext, of a step that verifies drafts."""
    slots = np.arange(num_rows, dtype=np.int32).repeat(drafts + 1)
    offsets = torch.arange(drafts + 1).repeat(num_rows)
    return slots, SimpleNamespace(
        idx_mapping_np=np.arange(num_rows, dtype=np.int32),
        input_ids=torch.randint(VOCABULARY, (len(slots),), dtype=torch.int32),
        pos=context - 1 - drafts + offsets,
        seq_lens_upper_bound_np=np.full(num_rows, context, dtype=np.int32),
    )


def guided_request(dimensions: int) -> GuidedRequest:
    """A request with weights in all dimensions and both guards."""
    return GuidedRequest(Guidance((1.0,) * dimensions, 1.0, K, no_repeat=NO_REPEAT, min_p=0.15))


def milliseconds(call: Callable[[int], Any], rounds: int) -> float:
    """Median time of call(round)."""
    times = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times[1:]) * 1e3, 3)


def measure(num_rows: int, context: int, drafts: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    slots, ctx = step_context(num_rows, context, drafts)
    batch = BatchSlots(CPU, lambda _: None)
    reader = V2AnswerTokenReader(request_states(num_rows, context, args.answer))
    for slot in range(num_rows):
        batch.assign(slot, guided_request(args.dimensions))
        reader.add_request(slot, is_read=True)
        reader.read_earlier_tokens(slot)

    def changed_rows(number: int) -> Any:
        batch.assign(number % num_rows, guided_request(args.dimensions))
        return batch.guided_rows(slots)

    guided = changed_rows(0)
    answers = reader.read(guided, ctx)
    ids = torch.randint(VOCABULARY, (len(slots), K))
    n = guided.no_repeat
    return {
        "rows": num_rows,
        "context": context,
        "drafts": drafts,
        "rows_ms": milliseconds(changed_rows, args.rounds),
        "answers_ms": milliseconds(lambda _: reader.read(guided, ctx), args.rounds),
        "guard_ms": milliseconds(lambda _: repeats_ngram(answers, ids, n, NO_REPEAT), args.rounds),
        "text_bytes": answers.row_tokens().nbytes,
    }


def table(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The result as Markdown lines."""
    lines = [
        "| requests | drafts | context | rows ms | answers ms | guard ms | KiB |",
        "|" + " --: |" * 7,
    ]
    for one in measured:
        numbers = (one[name] for name in ("rows", "drafts", "context"))
        times = (f"{one[name]:.2f}" for name in ("rows_ms", "answers_ms", "guard_ms"))
        lines.append(f"| {' | '.join(map(str, [*numbers, *times, one['text_bytes'] >> 10]))} |")
    return lines


def main() -> None:
    """Run the command line in the module's docstring."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 32768, 131072])
    parser.add_argument("--drafts", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--answer", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--dimensions", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = [
        measure(num_rows, context, drafts, args)
        for num_rows in args.rows
        for drafts in args.drafts
        for context in args.contexts
    ]
    result = {"command": arguments.command_line(), "measured": measured, "table": table(measured)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
