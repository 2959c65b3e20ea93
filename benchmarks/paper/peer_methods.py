"""What do peer methods make of the same instructions and the same reward model? Five of them, judged alike.

    python -m benchmarks.paper.peer_methods --learn prompts.txt --prompts prompts.txt --out peers.json

activation   the mean residual of answers under the instruction less that of plain answers, times the
             strength, added to what the middle third of the layers give, at every token (EasySteer, repeng)
contexts     two forward passes a step: z_B + strength (log p_instructed - log p_B), the instructed base
             beside the plain one, over the base's top 20 (context steering, Linear Alignment)
filter       value-filtered decoding: the base's own token stays, unless the adapter's reward of it, less the
             candidates' mean, is below the strength; then the candidate of the highest reward takes its place
policy       a LoRA policy that `dpo_policy.py` trained, at strength 1; two dimensions at once are the mean of
             two policies' weights (rewarded soups)
best-of      of as many answers as the strength says, the one whose tokens have the largest sum of rewards; a
             token's reward is less the mean of the base's candidates, as in guidance

Unguided and instructed answers come from the same loop, Transformers' `generate`. --learn: prompts that the
vectors are made from; --prompts: others, which every method answers.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.common import arguments
from benchmarks.common.base_reader import open_reader
from benchmarks.paper.activation_steering import (
    activation_steering,
    learning_answers,
    steering_vectors,
)
from benchmarks.paper.peer_logits_processors import (
    TwoContextsProcessor,
    ValueFilterProcessor,
    even_weights,
)
from benchmarks.paper.transformers_decoding import TOP_K, TransformersDecoding
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.persrm import PersRM
from pad_vllm.steering import comparison_conditions, dimension_judges
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import (
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    condition_messages,
)
from pad_vllm.steering.steering_metrics import ConditionMetrics, metrics_table
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.conversation import Conversation
from pad_vllm.training.sampling.sample_responses import read_prompts

UNGUIDED = comparison_conditions.unguided_condition()

ConditionAnswers = tuple[Condition, list[DrawnAnswer]]
"""A way of answering, and its answer to each prompt."""


def draw_untrained_methods(
    decoding: TransformersDecoding,
    prompts: Conversations,
    vectors: Mapping[str, Tensor],
    value: PersRM,
    args: argparse.Namespace,
    instructions: Mapping[str, str],
) -> Iterator[ConditionAnswers]:
    """Unguided and instructed answers; activation steering, two contexts and the value filter.

    Args:
        decoding: Of the base.
        prompts: That are answered.
        vectors: Dimension -> steering vectors.
        value: The adapter's reward model.
        args: With the strengths of each method.
        instructions: Of each dimension.
    """
    yield UNGUIDED, decoding.draw(prompts, UNGUIDED)
    conditions = comparison_conditions.instructed_conditions(instructions)
    instructed = dict(zip(instructions, conditions, strict=True))
    for condition in instructed.values():
        yield condition, decoding.draw(prompts, condition)
    for name, condition in instructed.items():
        for strength in args.activation:
            with activation_steering(decoding.model, vectors[name], strength):
                answers = decoding.draw(prompts, UNGUIDED)
            yield _single("activation", name, strength), answers
        for strength in args.contexts:

            def two_contexts(
                batch: Conversations, condition: Condition = condition, strength: float = strength
            ) -> TwoContextsProcessor:
                ids, mask = decoding.padded_ids(batch, condition)
                return TwoContextsProcessor(decoding.model, ids, mask, strength)

            answers = decoding.draw(prompts, UNGUIDED, processor=two_contexts)
            yield _single("contexts", name, strength), answers
        w = even_weights(value, name)
        for threshold in args.filter:
            with ValueFilterProcessor(
                decoding.model,
                value,
                w,
                threshold=threshold,
                temperature=decoding.temperature,
            ) as value_filter:
                answers = decoding.draw(
                    prompts, UNGUIDED, processor=lambda _, this=value_filter: this
                )
            yield _single("filter", name, threshold), answers


def draw_policies_and_best_of(
    decoding: TransformersDecoding,
    prompts: Conversations,
    value: PersRM,
    args: argparse.Namespace,
    base: str,
) -> Iterator[ConditionAnswers]:
    """Answers of the policies, and the best of some plain answers.

    Args:
        decoding: Of the base.
        prompts: That are answered.
        value: The adapter's reward model.
        args: With --policy and --best-of.
        base: Folder of the base.
    """
    for aims, model in load_policies(base, dict(args.policy or ())):
        weights = dict.fromkeys(aims, 1.0)
        condition = Condition(f"policy +{'+'.join(aims)}", weights, 1.0, aims=aims)
        yield condition, replace(decoding, model=model).draw(prompts, UNGUIDED)
    drawn: list[list[DrawnAnswer]] = []
    for count in sorted(args.best_of):
        seeds = range(len(drawn) + 1, count + 1)
        drawn += [decoding.draw(prompts, UNGUIDED, seed=seed) for seed in seeds]
        for name in value.dimensions:
            best = best_answers(decoding, value, name, prompts, drawn[:count])
            yield _single("best-of", name, count), best


def load_policies(
    base: str, folders: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> Iterator[tuple[dict[str, int], Any]]:
    """(what the policy aims at, its model): each policy, then the mean of every two.

    Args:
        base: Folder of the base.
        folders: Dimension -> folder of its LoRA.
        dtype: Of the base.
    """
    if not folders:
        return
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    first, *others = folders
    model: Any = PeftModel.from_pretrained(plain, folders[first], adapter_name=first).eval()
    for name in others:
        model.load_adapter(folders[name], adapter_name=name)
    for name in folders:
        model.set_adapter(name)
        yield {name: 1}, model
    for pair in itertools.combinations(folders, 2):
        soup = "+".join(pair)
        model.add_weighted_adapter(list(pair), [0.5, 0.5], soup, combination_type="cat")
        model.set_adapter(soup)
        yield dict.fromkeys(pair, 1), model


@torch.no_grad()
def best_answers(
    decoding: TransformersDecoding,
    value: PersRM,
    name: str,
    prompts: Conversations,
    drawn: Sequence[list[DrawnAnswer]],
) -> list[DrawnAnswer]:
    """Of each prompt's answers the one with the largest sum of rewards, Psi_w.

    The mean reward of a state's candidates steers nothing, and is subtracted: summed over an answer, it would
    outweigh the differences.

    Args:
        decoding: Of the base, for its tokenizer.
        value: The adapter's reward model.
        name: The dimension.
        prompts: That are answered.
        drawn: Several answers to every prompt.
    """
    w = even_weights(value, name)

    def reward_sum(prompt: Conversation, answer: DrawnAnswer) -> float:
        prompt_ids = chat_token_ids(decoding.tokenizer, condition_messages(prompt, UNGUIDED))
        ids = torch.tensor([[*prompt_ids, *answer.token_ids]])
        h_B, h_T = value.hidden(ids[:, :-1])
        positions = slice(len(prompt_ids) - 1, None)
        z, candidates = value.base_logits(h_B[0, positions]).topk(TOP_K)
        generated = ids[0, len(prompt_ids) :, None]
        rewards = value.rewards(
            h_B[0, positions], h_T[0, positions], torch.cat((generated, candidates), dim=-1), w
        )
        of_generated, of_candidates = rewards.split((1, TOP_K), dim=-1)
        return float(of_generated.sum() - (z.softmax(-1) * of_candidates).sum())

    return [
        max(answers, key=lambda answer, prompt=prompt: reward_sum(prompt, answer))
        for prompt, answers in zip(prompts, zip(*drawn, strict=True), strict=True)
    ]


def _single(method: str, name: str, strength: float) -> Condition:
    (condition,) = comparison_conditions.guided_conditions(method, [name], [strength], (1,))
    return condition


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--learn", type=Path, required=True)
    arguments.add_prompts_option(parser)
    parser.add_argument("--judge-prompts", type=Path, help="fit a judge of meaning on these")
    parser.add_argument("--activation", type=float, nargs="*", default=[0.1, 0.2])
    parser.add_argument("--contexts", type=float, nargs="*", default=[1.0])
    parser.add_argument("--filter", type=float, nargs="*", default=[-0.5, 0.0])
    parser.add_argument("--best-of", type=int, nargs="*", default=[4])
    parser.add_argument(
        "--policy", type=arguments.name_and_value, action="append", help="DIMENSION=FOLDER"
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    torch.set_grad_enabled(False)
    base = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = load_chat_tokenizer(Path(base), args.base, None)
    adapter = load_adapter(resolve_adapter(args.adapter))
    instructions = comparison_conditions.instructions_of(adapter.config)
    value = open_reader(args.base, adapter).model
    if args.filter and not value.heads_only:
        raise SystemExit(
            "--filter reads the base's states only: an adapter of heads only, or no --filter"
        )
    decoding = TransformersDecoding(model, tokenizer, args.temperature, args.tokens)
    prompts = read_prompts(args.prompts)
    classifiers = {}
    if args.judge_prompts is not None:
        judge_decoding = DecodingSettings(args.temperature, args.tokens, dtype="float32")
        classifiers = dimension_judges.fit_meaning_judges(
            args.base, instructions, read_prompts(args.judge_prompts), judge_decoding
        )
    vectors = {}
    if args.activation:
        learned = learning_answers(decoding, read_prompts(args.learn), instructions)
        vectors = steering_vectors(decoding, learned, instructions)
    drawn = list(draw_untrained_methods(decoding, prompts, vectors, value, args, instructions))
    drawn += draw_policies_and_best_of(decoding, prompts, value, args, base)
    judges = dimension_judges.DimensionJudges(model, tokenizer, instructions, classifiers)
    conditions, answers = zip(*drawn, strict=True)
    records = ConditionMetrics(judges, prompts).records(conditions, answers)
    lines = metrics_table(records)
    print("\n".join(lines))
    result = {
        "command": arguments.command_line(),
        "prompts": len(prompts),
        "judges": dimension_judges.judge_accuracies(classifiers),
        "temperature": args.temperature,
        "tokens": args.tokens,
        "records": records,
        "table": lines,
        "texts": {
            f"{condition.name} @{condition.beta:g}": [answer.text for answer in texts]
            for condition, texts in drawn
        },
    }
    arguments.write_result(args.out, result)


if __name__ == "__main__":
    main()
