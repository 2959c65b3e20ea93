"""At which depth does an instruction enter a base? What the layers from a fork layer up know of it.

    python -m benchmarks.quality.instruction_depth --base DIR --prompts koala.jsonl --out depth.json

The rewards of an instructed base (the instruction behind the question) beside those of a base whose layers
from the fork layer up read the instruction in front of the text (`pad_vllm/instruction_prefix.py`): the share
of the former that the latter explain at the best scale, over the base's 20 candidates, weighed by their
probability. Answers: the base's own and the instructed base's. Intervals are over prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.prompt_intervals import statistic_and_interval
from pad_vllm import guidance
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.choices.candidate_reader import subtract_candidate_mean
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text
from pad_vllm.instruction_prefix import InstructedBackbone
from pad_vllm.steering.comparison_conditions import instructed_conditions, unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.instruction_tokens import instruction_tokens
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.sampling.sample_responses import read_prompts

INSTRUCTIONS = {
    "friendly": "Answer in a warm, casual and friendly tone.",
    "funny": "Answer in a funny way, with jokes and humor.",
    "expert": "Answer like an expert, with technical depth and precise terms.",
    "brief": "Answer in one or two short sentences.",
    "simple": "Use plain, simple words and short sentences, as if explaining to a five-year-old child.",
    "formal": "Answer in a formal and polite style.",
}
"""Name -> what a user would write."""

NUM_CANDIDATES = 20
BATCH = 8  # texts of one forward
BLOCK_SIZE = 16  # tokens of a KV block: vLLM's on a GPU

Products = tuple[float, float, float]
"""Of two rewards of the same candidates: reward x teacher, reward x reward, teacher x teacher."""


class Text(NamedTuple):
    """An answer behind a prompt, as token ids."""

    prompt: list[int]
    answer: list[int]

    def ids(self) -> list[int]:
        """Both."""
        return self.prompt + self.answer

    def answer_states(self, hidden: Tensor) -> Tensor:
        """[n, H] float32 of hidden [T, H]: the states from which the answer's tokens are predicted."""
        return hidden[len(self.prompt) - 1 : len(self.prompt) + len(self.answer) - 1].float()


def candidate_rewards(embeddings: Tensor, p: Tensor, difference: Tensor) -> Tensor:
    """Rewards with zero mean under the base.

    Args:
        embeddings: [n, K, H] float32 of the candidates.
        p: [n, K] their probabilities.
        difference: [n, H] of two hidden states.

    Returns:
        [n, K].
    """
    rewards = guidance.rewards(difference, embeddings)
    return subtract_candidate_mean(rewards.unsqueeze(-1), p).squeeze(-1)


def reward_products(p: Tensor, own: Tensor, teacher: Tensor) -> Products:
    """Products of rewards [n, K] of the same candidates, weighed by their probabilities p [n, K]."""
    pairs = ((own, teacher), (own, own), (teacher, teacher))
    both, squared, teachers = (float((p * a * b).sum()) for a, b in pairs)
    return both, squared, teachers


def explained_share(products: np.ndarray) -> np.ndarray:
    """The share of the teacher's rewards explained at the best scale: Products [..., 3] -> [...]."""
    both, own, teacher = np.moveaxis(products, -1, 0)
    return both**2 / (own * teacher)


def best_scale(by_prompt: Sequence[Products]) -> float:
    """The scale at which the rewards come nearest to the teacher's."""
    both, own, _ = np.sum(np.asarray(by_prompt), axis=0)
    return float(both / own)


class BaseReading(NamedTuple):
    """What a base makes of a batch of texts, with nothing in front of them."""

    texts: list[Text]
    h_B: list[Tensor]
    """[n, H] float32 each: the states from which the answers' tokens are predicted."""

    forked: list[Tensor]
    """[N, T, H] for each fork layer: the residual stream below it."""


class DepthReader:
    """Reads answers with a base, with its instructed self, and with instructions from fork layers up."""

    def __init__(self, model: Any, tokenizer: Any, fork_layers: Sequence[int]) -> None:
        """Of one base; fork_layers: those that are compared."""
        self.model, self.tokenizer = model, tokenizer
        self.forks = [InstructedBackbone(model, layer) for layer in fork_layers]

    @torch.no_grad()
    def read_plainly(
        self, prompts: Conversations, answers: Sequence[DrawnAnswer]
    ) -> list[BaseReading]:
        """Batches of texts without an instruction, which every instruction's `products` start from."""
        texts = [
            Text(chat_token_ids(self.tokenizer, prompt.messages()), list(answer.token_ids))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        readings = []
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            outputs = self.model.model(
                input_ids=_padded_ids(batch), use_cache=False, output_hidden_states=True
            )
            forked = [outputs.hidden_states[fork.fork_layer] for fork in self.forks]
            h_B = _answer_states(batch, outputs.last_hidden_state)
            readings.append(BaseReading(batch, h_B, forked))
        return readings

    @torch.no_grad()
    def products(
        self, prompts: Conversations, readings: Sequence[BaseReading], instruction: str
    ) -> list[list[Products]]:
        """[fork layer][answer] products; prompts and answers read: as many of each."""
        tokens = instruction_tokens(self.tokenizer, instruction)
        prefixes = [fork.read_instruction(tokens, BLOCK_SIZE) for fork in self.forks]
        instructed_prompts = iter(
            [
                chat_token_ids(self.tokenizer, with_instruction(prompt.messages(), instruction))
                for prompt in prompts
            ]
        )
        rows: list[list[Products]] = [[] for _ in self.forks]
        for texts, h_B, forked in readings:
            instructed = [text._replace(prompt=next(instructed_prompts)) for text in texts]
            hidden = self.model.model(input_ids=_padded_ids(instructed), use_cache=False)
            h_S = _answer_states(instructed, hidden.last_hidden_state)
            teachers = list(self._teachers(h_B, h_S))
            for row, fork, below, prefix in zip(rows, self.forks, forked, prefixes, strict=True):
                h_T = _answer_states(texts, fork.instructed_states(below, prefix))
                row += [
                    teacher.products(with_prefix - base)
                    for with_prefix, base, teacher in zip(h_T, h_B, teachers, strict=True)
                ]
        return rows

    def _teachers(self, h_B: Sequence[Tensor], h_S: Sequence[Tensor]) -> Iterator[_Teacher]:
        embedding = self.model.lm_head.weight[: len(self.tokenizer)]
        for base, instructed in zip(h_B, h_S, strict=True):
            z, ids = (base.to(embedding.dtype) @ embedding.T).float().topk(NUM_CANDIDATES)
            p, e = z.softmax(-1), embedding[ids].float()
            yield _Teacher(e, p, candidate_rewards(e, p, instructed - base))


class _Teacher(NamedTuple):
    """The instructed base's rewards at one answer's tokens."""

    embeddings: Tensor  # [n, K, H]
    p: Tensor  # [n, K]
    rewards: Tensor  # [n, K]

    def products(self, difference: Tensor) -> Products:
        rewards = candidate_rewards(self.embeddings, self.p, difference)
        return reward_products(self.p, rewards, self.rewards)


def _answer_states(texts: Sequence[Text], hidden: Tensor) -> list[Tensor]:
    """[n, H] float32 of each text: the states from which the answer's tokens are predicted."""
    return [text.answer_states(row) for text, row in zip(texts, hidden, strict=True)]


def _padded_ids(texts: Sequence[Text]) -> Tensor:
    return pad_sequence([torch.tensor(text.ids()) for text in texts], batch_first=True)


def table(fork_layers: Sequence[int], num_layers: int, rows: Mapping[str, Any]) -> list[str]:
    """Markdown, a line a fork layer."""
    lines = [
        f"| fork layer, of {num_layers} | {' | '.join(rows)} | mean |",
        f"| --- |{' --- |' * (len(rows) + 1)}",
    ]
    for index, layer in enumerate(fork_layers):
        shares = [row["shares"][index] for row in rows.values()]
        cells = [value_and_interval_text(share) for share in shares]
        mean = np.mean([share for share, _, _ in shares])
        lines.append(f"| {layer} | {' | '.join(cells)} | {mean:.2f} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, adapter=None)
    arguments.add_prompts_option(parser)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--limit", type=int, help="number of prompts (default: all)")
    parser.add_argument("--fork-layers", type=int, nargs="+", required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kept", type=Path, help="file of drawn answers (default: beside --out)")
    args = parser.parse_args()
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    prompts = read_prompts(args.prompts)[: args.limit]
    conditions = [unguided_condition(), *instructed_conditions(INSTRUCTIONS)]
    decoding = DecodingSettings(0.7, args.tokens, dtype=args.dtype)
    batch = AnswerBatch(args.base, None, prompts, conditions, [decoding])
    ((plain_answers, *told_answers),) = cache.draw(batch)
    folder = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    tokenizer = load_chat_tokenizer(folder, args.base, None)
    reader = DepthReader(model, tokenizer, args.fork_layers)
    plain = reader.read_plainly(prompts, plain_answers)
    rows: dict[str, Any] = {}
    for (name, instruction), answers in zip(INSTRUCTIONS.items(), told_answers, strict=True):
        told = reader.read_plainly(prompts, answers)
        by_fork = [
            [tuple(np.add(a, b)) for a, b in zip(first, second, strict=True)]
            for first, second in zip(
                reader.products(prompts, plain, instruction),
                reader.products(prompts, told, instruction),
                strict=True,
            )
        ]
        rows[name] = {
            "instruction": instruction,
            "shares": [statistic_and_interval(products, explained_share) for products in by_fork],
            "scales": [round(best_scale(products), 2) for products in by_fork],
        }
        print(name, rows[name]["shares"], rows[name]["scales"], flush=True)
    num_layers = model.config.num_hidden_layers
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts),
        "tokens": args.tokens,
        "dtype": args.dtype,
        "layers": num_layers,
        "fork_layers": args.fork_layers,
        "rows": rows,
        "table": table(args.fork_layers, num_layers, rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
