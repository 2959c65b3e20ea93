"""What users get elsewhere, of the same sentences and the same reward model, judged alike: four peers' rules.

    python benchmarks/peers.py --adapter ADAPTER --learn prompts.txt --steering prompts.txt --out peers.json

activation   the mean residual of answers that were told the sentence less that of plain answers, times the
             strength, added to what the middle third of the layers give, at every token (EasySteer, repeng)
contexts     two forward passes a step: z_B + strength (log p_told - log p_B), the told base beside the plain
             one, over the base's top 20, as guided decoding is (context steering, Linear Alignment)
filter       value-filtered decoding: the base's own token stays, unless the adapter's reward of it, less the
             candidates' mean, is below the strength; then the best-paid candidate is said
policy       a LoRA policy that `policy.py` trained, at strength 1; two dimensions at once are the mean of two
             policies' weights (rewarded soups)
best-of      as many answers as the strength says, of which the reward summed over the tokens picks one; a
             token's is what it earns more than the base's candidates do on average, as in guidance

Unguided and told answers come from the same loop, Transformers' `generate`. --learn: prompts that the vectors
are made from; --steering: others, that everybody answers.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import arguments
import torch
from candidates import Reader
from peer_rules import TwoContexts, ValueFilter
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessor

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
from pad_vllm.training.data.conversation import Conversation
from pad_vllm.training.sampling.sample_responses import read_prompts

TOP_K = 20
BATCH = 32


@dataclass
class Loop:
    """Transformers' own decoding, left-padded batches."""

    model: Any
    tokenizer: Any
    temperature: float
    tokens: int

    def answers(
        self,
        prompts: Conversations,
        told: Condition,
        *,
        rule: Callable[[Sequence[str]], LogitsProcessor] | None = None,
        seed: int = 0,
    ) -> list[DrawnAnswer]:
        """told: what the prompts say; rule: what changes the logits of some prompts' answers."""
        found: list[DrawnAnswer] = []
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            torch.manual_seed(start + 1000 * seed)
            ids, mask = self.padded(some, told)
            sampled = {"do_sample": True, "temperature": self.temperature, "top_k": TOP_K}
            guided = [] if rule is None else [rule(some)]
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.tokens,
                pad_token_id=self.tokenizer.eos_token_id,
                logits_processor=guided,
                **(sampled if self.temperature else {"do_sample": False}),
            )
            found += [self._answer(row[ids.shape[1] :].tolist()) for row in made]
        return found

    def _answer(self, ids: list[int]) -> DrawnAnswer:
        end = self.tokenizer.eos_token_id
        said = ids[: ids.index(end) + 1] if end in ids else ids
        return DrawnAnswer(self.tokenizer.decode(said, skip_special_tokens=True), tuple(said))

    def padded(self, prompts: Conversations, condition: Condition) -> tuple[Tensor, Tensor]:
        """Ids and mask, [N, T]."""
        rows = [
            chat_token_ids(self.tokenizer, condition_messages(prompt, condition))
            for prompt in prompts
        ]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


@torch.no_grad()
def residuals(
    model: Any, tokenizer: Any, told: Condition, pairs: Sequence[tuple[str, DrawnAnswer]]
) -> Tensor:
    """[L, H] mean output of every layer over the answers' tokens, read behind what they were told."""
    total, count = torch.zeros(()), 0
    for prompt, answer in pairs:
        ids = [*chat_token_ids(tokenizer, condition_messages(prompt, told)), *answer.token_ids]
        hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True, logits_to_keep=1)
        rows = torch.stack(hidden.hidden_states[1:])[:, 0, -len(answer.token_ids) :]
        total, count = total + rows.sum(1), count + rows.shape[1]
    return total / count


@contextlib.contextmanager
def steered(model: Any, vectors: Tensor, by: float) -> Iterator[None]:
    """Within it the middle third of the layers give `by` times their vector [L, H] more."""
    layers = model.model.layers
    hooks = []
    for number in range(len(layers) // 3, 2 * len(layers) // 3):
        added = by * vectors[number]

        def add(_: Any, __: Any, out: Any, added: Tensor = added) -> Any:
            return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

        hooks.append(layers[number].register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def vectors(loop: Loop, learn: Sequence[str], sentences: dict[str, str]) -> dict[str, Tensor]:
    plain = comparison_conditions.unguided_condition()

    def mean(told: Condition) -> Tensor:
        said = [
            pair for pair in zip(learn, loop.answers(learn, told), strict=True) if pair[1].token_ids
        ]
        return residuals(loop.model, loop.tokenizer, told, said)

    base = mean(plain)
    told = zip(sentences, comparison_conditions.instructed_conditions(sentences), strict=True)
    return {name: mean(one) - base for name, one in told}


def rows(
    loop: Loop,
    prompts: Conversations,
    learned: dict[str, Tensor],
    value: PersRM,
    args: argparse.Namespace,
    sentences: dict[str, str],
) -> Iterator[tuple[Condition, list[DrawnAnswer]]]:
    plain = comparison_conditions.unguided_condition()
    yield plain, loop.answers(prompts, plain)
    wishes = dict(
        zip(sentences, comparison_conditions.instructed_conditions(sentences), strict=True)
    )
    for one in wishes.values():
        yield one, loop.answers(prompts, one)
    for name, one in wishes.items():
        for by in args.activation:
            with steered(loop.model, learned[name], by):
                yield _guided("activation", name, by), loop.answers(prompts, plain)
        for by in args.contexts:

            def beside(some: Sequence[str], one: Condition = one, by: float = by) -> TwoContexts:
                return TwoContexts(loop.model, *loop.padded(some, one), by)

            yield _guided("contexts", name, by), loop.answers(prompts, plain, rule=beside)
        w = weights(value, name)
        for least in args.filter:
            with ValueFilter(loop.model, value, w, least, loop.temperature) as kept:
                said = loop.answers(prompts, plain, rule=lambda _, kept=kept: kept)
            yield _guided("filter", name, least), said


def trained(
    loop: Loop, prompts: Conversations, value: PersRM, args: argparse.Namespace, base: str
) -> Iterator[tuple[Condition, list[DrawnAnswer]]]:
    """Policies, and the best of some plain answers."""
    plain = comparison_conditions.unguided_condition()
    for aims, model in policies(base, dict(args.policy or ())):
        made = Condition(f"policy +{'+'.join(aims)}", dict.fromkeys(aims, 1.0), 1.0, "", aims)
        yield made, replace(loop, model=model).answers(prompts, plain)
    drawn: list[list[DrawnAnswer]] = []
    for count in sorted(args.best_of):
        drawn += [loop.answers(prompts, plain, seed=n) for n in range(len(drawn) + 1, count + 1)]
        for name in value.dimensions:
            best = best_of(loop, value, name, prompts, drawn[:count])
            yield _guided("best-of", name, count), best


def policies(base: str, folders: dict[str, str]) -> Iterator[tuple[dict[str, int], Any]]:
    """What each policy aims at, and the base under it; then the mean of every two."""
    if not folders:
        return
    from peft import PeftModel

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
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


def weights(value: PersRM, *names: str) -> Tensor:
    """[D], of these dimensions, as much of each."""
    return torch.tensor([float(one in names) for one in value.dimensions])


@torch.no_grad()
def best_of(
    loop: Loop, value: PersRM, name: str, prompts: Conversations, drawn: Sequence[list[DrawnAnswer]]
) -> list[DrawnAnswer]:
    """Of each prompt's answers the one that the reward model pays most, Psi_w.

    What all candidates of a state share steers nothing, and is taken off: summed, it would outweigh the rest.
    """
    w, plain = weights(value, name), comparison_conditions.unguided_condition()

    def paid(prompt: Conversation, answer: DrawnAnswer) -> float:
        ids = chat_token_ids(loop.tokenizer, condition_messages(prompt, plain))
        said = torch.tensor([[*ids, *answer.token_ids]])
        h_B, h_T = value.hidden(said[:, :-1])
        rows = slice(len(ids) - 1, None)
        z, candidates = value.base_logits(h_B[0, rows]).topk(TOP_K)
        every = torch.cat((said[0, len(ids) :, None], candidates), dim=-1)
        taken, others = value.rewards(h_B[0, rows], h_T[0, rows], every, w).split(
            (1, TOP_K), dim=-1
        )
        return float(taken.sum() - (z.softmax(-1) * others).sum())

    return [
        max(answers, key=lambda answer, prompt=prompt: paid(prompt, answer))
        for prompt, answers in zip(prompts, zip(*drawn, strict=True), strict=True)
    ]


def _guided(method: str, name: str, by: float) -> Condition:
    (one,) = comparison_conditions.guided_conditions(method, [name], [by], (1,))
    return one


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--learn", type=Path, required=True)
    parser.add_argument("--steering", type=Path, required=True)
    parser.add_argument("--judge-prompts", type=Path, help="fit a judge of meaning on these")
    parser.add_argument("--activation", type=float, nargs="*", default=[0.1, 0.2])
    parser.add_argument("--contexts", type=float, nargs="*", default=[1.0])
    parser.add_argument("--filter", type=float, nargs="*", default=[-0.5, 0.0])
    parser.add_argument("--best-of", type=int, nargs="*", default=[4])
    parser.add_argument("--policy", type=arguments.pair, action="append", help="DIMENSION=FOLDER")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=100)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    base = resolve_base(args.base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = load_chat_tokenizer(Path(base), args.base, None)
    adapter = load_adapter(resolve_adapter(args.adapter))
    sentences = comparison_conditions.instructions_of(adapter.config)
    value = Reader.of(args.base, adapter).model
    if args.filter and not value.heads_only:
        parser.error(
            "--filter reads the base's states alone: an adapter of heads only, or no --filter"
        )
    loop = Loop(model, tokenizer, args.temperature, args.tokens)
    prompts = read_prompts(args.steering)
    leanings = {}
    if args.judge_prompts is not None:
        drawn = DecodingSettings(args.temperature, args.tokens, dtype="float32")
        leanings = dimension_judges.fit_meaning_judges(
            args.base, sentences, read_prompts(args.judge_prompts), drawn
        )
    learned = {}
    if args.activation:
        learned = vectors(loop, read_prompts(args.learn), sentences)
    made = list(rows(loop, prompts, learned, value, args, sentences))
    made += trained(loop, prompts, value, args, base)
    judged = dimension_judges.DimensionJudges(model, tokenizer, sentences, leanings)
    found = ConditionMetrics(judged, prompts).records(*zip(*made, strict=True))
    texts = {f"{c.name} @{c.beta:g}": [one.text for one in said] for c, said in made}
    lines = metrics_table(found)
    print("\n".join(lines))
    arguments.report(
        args.out,
        {
            "command": arguments.command(),
            "prompts": len(prompts),
            "judges": dimension_judges.judge_accuracies(leanings),
            "temperature": args.temperature,
            "tokens": args.tokens,
            "records": found,
            "table": lines,
            "texts": texts,
        },
    )


if __name__ == "__main__":
    main()
