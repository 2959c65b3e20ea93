"""What a learned prefix knows of an instruction, by the layer from which up the reward stream reads it.

    python -m benchmarks.quality.learned_prefix_depth --base DIR --prompts train.jsonl --held-out 20 \
        --fork-layers 10 12 14 18 --instructions friendly funny --out learned_prefix_depth.json

Every prompt is answered plainly and with each instruction in the prompt. Of all prompts but the last ones,
each fork layer's prefix is trained on the instructed base's rewards, from the sentence's own keys and values
(pad_vllm/training/distillation/prefix_training.py); on the last ones the share of these rewards that is
explained is measured, over the base's 20 candidates, weighed by their probability: by the sentence at its
best scale, and by the trained prefix at scale 1. Intervals are over prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.prompt_intervals import statistic_and_interval
from benchmarks.quality.instruction_depth import (
    INSTRUCTIONS,
    NUM_CANDIDATES,
    Products,
    explained_share,
    reward_products,
)
from pad_vllm import guidance
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.win_rates_and_fluency import value_and_interval_text
from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix
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
from pad_vllm.training.distillation.prefix_training import (
    PrefixText,
    PrefixTexts,
    sentence_prefix,
    train_prefix,
)
from pad_vllm.training.objective.candidate_rewards import subtract_base_mean
from pad_vllm.training.sampling.sample_responses import read_prompts
from pad_vllm.training.settings import PrefixSettings


class Teacher:
    """The base, and the rewards of the base with an instruction in its prompt."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def embeddings(self, ids: Tensor) -> Tensor:
        """Rows of lm_head, float32."""
        rows: Tensor = self.model.lm_head.weight[ids].float()
        return rows

    @torch.no_grad()
    def read(
        self, prompts: Conversations, answers: Sequence[DrawnAnswer], instruction: str
    ) -> tuple[list[PrefixText], list[Tensor]]:
        """The answers as the base sees them, and the teacher's rewards [n, K] of their candidates."""
        texts, rewards = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            messages, ids = prompt.messages(), list(answer.token_ids)
            plain = chat_token_ids(self.tokenizer, messages)
            told = chat_token_ids(self.tokenizer, with_instruction(messages, instruction))
            h_B, h_S = (
                self._answer_states([*first, *ids][:-1], len(ids)) for first in (plain, told)
            )
            logits = (h_B.to(self.model.dtype) @ self.model.lm_head.weight.T).float()
            z_B, candidates = logits[:, : len(self.tokenizer)].topk(NUM_CANDIDATES)
            difference = guidance.rewards(h_S - h_B, self.embeddings(candidates))
            texts.append(PrefixText([*plain, *ids][:-1], h_B, candidates, z_B))
            rewards.append(subtract_base_mean(difference.unsqueeze(-1), z_B)[..., 0])
        return texts, rewards

    def _answer_states(self, ids: list[int], num_tokens: int) -> Tensor:
        hidden = self.model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        states: Tensor = hidden[0, -num_tokens:].float()
        return states


@torch.no_grad()
def text_products(
    texts: PrefixTexts, prefix: InstructionPrefix, teacher_rewards: Sequence[Tensor]
) -> list[Products]:
    """Of each text reward x teacher, reward x reward, teacher x teacher."""
    found: dict[int, Products] = {}
    for batch in texts.batches:
        by_text = texts.rewards(batch, prefix)
        for place, text, rewards in zip(batch.places, batch.texts, by_text, strict=True):
            own = subtract_base_mean(rewards, text.z_B)[..., 0]
            found[place] = reward_products(text.z_B.softmax(-1), own, teacher_rewards[place])
    return [found[place] for place in range(len(found))]


def share_at_one(products: np.ndarray) -> np.ndarray:
    """The share of the teacher's rewards explained at scale 1: Products [..., 3] -> [...]."""
    both, own, teacher = np.moveaxis(products, -1, 0)
    return (2 * both - own) / teacher


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a fork layer and instruction."""
    lines = [
        "| fork layer | instruction | sentence | learned prefix | an epoch |",
        "| ---: | --- | --- | --- | ---: |",
    ]
    for row in rows:
        cells = [value_and_interval_text(row[key]) for key in ("sentence", "prefix")]
        lines.append(
            f"| {row['fork_layer']} | {row['instruction']} | {' | '.join(cells)} | {row['seconds']:.0f} s |"
        )
    return lines


def _by_prompt(products: Sequence[Products], num_prompts: int) -> list[Products]:
    """Plain and instructed answers of a prompt together; the latter follow all of the former."""
    pairs = zip(products[:num_prompts], products[num_prompts:], strict=True)
    return [tuple(np.add(plain, told)) for plain, told in pairs]


def _arguments() -> argparse.Namespace:
    parser = arguments.make_parser(__doc__, adapter=None)
    arguments.add_prompts_option(parser)
    parser.add_argument("--held-out", type=int, default=20, help="prompts to measure on, the last")
    parser.add_argument("--tokens", type=int, default=80, help="of an answer, at most")
    parser.add_argument("--fork-layers", type=int, nargs="+", required=True)
    parser.add_argument("--instructions", nargs="+", default=["friendly", "funny"])
    parser.add_argument("--prefix-tokens", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--kept", type=Path, help="file of drawn answers (default: beside --out)")
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = _arguments()
    cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
    prompts = read_prompts(args.prompts)
    conditions = [unguided_condition(), *instructed_conditions(INSTRUCTIONS)]
    decoding = DecodingSettings(0.7, args.tokens, dtype=args.dtype)
    ((plain, *told),) = cache.draw(AnswerBatch(args.base, None, prompts, conditions, [decoding]))
    folder = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    model.requires_grad_(False)
    teacher = Teacher(model, load_chat_tokenizer(folder, args.base, None))
    answers_of = dict(zip(INSTRUCTIONS, told, strict=True))
    settings = PrefixSettings(tokens=args.prefix_tokens, epochs=args.epochs)
    last, rows = args.held_out, []
    for name in args.instructions:
        instruction = INSTRUCTIONS[name]
        tokens = instruction_tokens(teacher.tokenizer, instruction)
        parts = {
            part: teacher.read(
                [*prompts[chosen], *prompts[chosen]],
                [*plain[chosen], *answers_of[name][chosen]],
                instruction,
            )
            for part, chosen in (("train", slice(-last)), ("held out", slice(-last, None)))
        }
        for layer in args.fork_layers:
            backbone = InstructedBackbone(model, layer)
            train, held_out = (
                PrefixTexts(backbone, teacher.embeddings, parts[part][0]) for part in parts
            )
            start, begun = sentence_prefix(backbone, tokens, args.prefix_tokens), time.monotonic()
            trained = train_prefix(
                train, parts["train"][1], start, settings, seed=0, log=lambda *_: None
            )
            seconds = (time.monotonic() - begun) / args.epochs
            wanted = parts["held out"][1]
            shares = {
                key: statistic_and_interval(
                    _by_prompt(text_products(held_out, prefix, wanted), last), statistic
                )
                for key, prefix, statistic in (
                    ("sentence", start, explained_share),
                    ("prefix", trained, share_at_one),
                )
            }
            row = {"fork_layer": layer, "instruction": name, **shares, "seconds": seconds}
            row["first"] = round(held_out.explained_share(trained, wanted, 1), 3)
            rows.append(row)
            print(table([row])[-1], flush=True)
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts) - last,
        "held_out": last,
        "tokens": args.tokens,
        "epochs": args.epochs,
        "prefix_tokens": args.prefix_tokens,
        "layers": model.config.num_hidden_layers,
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
