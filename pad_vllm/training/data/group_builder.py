"""Records into prompt groups: tokenized, cut to their limits, prefixes scored.

In: records, a tokenizer, the dimensions' names. Out: a `PromptGroup` for each usable record, and a count of
the records and responses that were dropped or cut, by reason. Knows nothing of models, nor where records come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from pad_vllm.evaluation.lexical_scorers import COMPLETE_ONLY, LEXICAL_SCORERS, lexical_scores
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.training.data.data_spec import repeats_per_epoch
from pad_vllm.training.data.preference_record import PreferenceRecord, Response
from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS, PromptGroup


@dataclass
class GroupingCounts:
    """How many records of one source became groups, and how many were dropped or cut, by reason."""

    groups: int = 0
    """Groups made."""

    long_prompts: int = 0
    """Records dropped: the prompt has more than max_prompt tokens."""

    refused_prompts: int = 0
    """Records dropped: the chat template does not take such a conversation."""

    cut_responses: int = 0
    """Responses cut to max_response tokens."""

    duplicate_responses: int = 0
    """Responses dropped: after the cut another one has the same tokens."""

    uninformative: int = 0
    """Records dropped: no dimension scores two of their responses differently."""

    pairs: dict[str, int] = field(default_factory=dict)
    """Dimension -> pairs of whole responses with known and different scores."""


def build_groups(
    records: Iterable[PreferenceRecord],
    tokenizer: Any,
    dimensions: tuple[str, ...],
    *,
    max_prompt: int,
    max_response: int,
    weight_of_source: Mapping[str, float] | None = None,
) -> tuple[list[PromptGroup], dict[str, GroupingCounts]]:
    """Tokenize records and score the prefixes of their responses.

    Args:
        records: of any sources.
        tokenizer: the base's, with a chat template.
        dimensions: names of the D dimensions of the groups' scores.
        max_prompt: tokens; records with a longer prompt are dropped.
        max_response: tokens; longer responses are cut.
        weight_of_source: label -> weight (`data_spec.weight_by_label`); 1 for a source that is not in it.

    Returns:
        (groups in the records' order, source -> counts of what was made and dropped).
    """
    builder = _GroupBuilder(tokenizer, dimensions, max_prompt, max_response)
    counts_of: dict[str, GroupingCounts] = {}
    groups = []
    for record in records:
        counts = counts_of.setdefault(
            record.source, GroupingCounts(pairs=dict.fromkeys(dimensions, 0))
        )
        group = builder.build(record, counts)
        weight = (weight_of_source or {}).get(record.source, 1.0)
        repeats = repeats_per_epoch(weight, prompt_key(record.prompt))
        if group is not None and repeats:
            counts.groups += 1
            for name, pairs in zip(dimensions, _count_pairs(group.scores[:, -1]), strict=True):
                counts.pairs[name] += pairs
            groups.append(replace(group, repeats_per_epoch=repeats))
    return groups, counts_of


@dataclass(frozen=True)
class _GroupBuilder:
    """Makes a group of a record; counts what it drops or cuts."""

    tokenizer: Any
    dimensions: tuple[str, ...]
    max_prompt: int
    max_response: int

    def build(self, record: PreferenceRecord, counts: GroupingCounts) -> PromptGroup | None:
        """None for a record that is dropped."""
        prompt_ids = self._prompt_ids(record.prompt, counts)
        if prompt_ids is None:
            return None
        prefix_scorers = self._prefix_scorers(record)
        scorer_of = {d: name for d, name in enumerate(prefix_scorers) if name is not None}
        scores_by_ids: dict[tuple[int, ...], Tensor] = {}
        for response in record.responses:
            ids, was_cut = self._response_ids(response)
            counts.cut_responses += was_cut
            if tuple(ids) in scores_by_ids:
                counts.duplicate_responses += 1
                continue
            known = torch.tensor([response.scores.get(name, torch.nan) for name in self.dimensions])
            scores_by_ids[tuple(ids)] = self._scores(ids, known, scorer_of, was_cut=was_cut)
        scores = torch.stack(list(scores_by_ids.values()))
        if not sum(_count_pairs(scores.flatten(1))):
            counts.uninformative += 1
            return None
        return PromptGroup(
            prompt_key=prompt_key(record.prompt),
            source=record.source,
            prompt_ids=prompt_ids,
            response_ids=[list(ids) for ids in scores_by_ids],
            scores=scores,
            prefix_scorers=prefix_scorers,
            conversation=record.prompt,
        )

    def _prompt_ids(self, prompt: Conversation, counts: GroupingCounts) -> list[int] | None:
        try:
            ids = chat_token_ids(self.tokenizer, prompt.messages())
        except TemplateError:  # Gemma's takes no system turn, for instance
            counts.refused_prompts += 1
            return None
        if len(ids) > self.max_prompt:
            counts.long_prompts += 1
            return None
        return ids

    def _response_ids(self, response: Response) -> tuple[list[int], bool]:
        """Token ids, with the end-of-sequence token that ends the model's turn, and whether they were cut."""
        ids = list(response.token_ids or [])
        if not ids:
            ids += self.tokenizer(response.text, add_special_tokens=False)["input_ids"]
            if self.tokenizer.eos_token_id is not None:
                ids.append(self.tokenizer.eos_token_id)
        return ids[: self.max_response], len(ids) > self.max_response

    def _prefix_scorers(self, record: PreferenceRecord) -> tuple[str | None, ...]:
        """[D] the scorer that made the scores, if it can score unfinished text, too; None otherwise."""
        names = [record.scorers.get(name, "") for name in self.dimensions]
        return tuple(
            name if name in LEXICAL_SCORERS and name not in COMPLETE_ONLY else None
            for name in names
        )

    def _scores(
        self, ids: list[int], known: Tensor, scorer_of: Mapping[int, str], *, was_cut: bool
    ) -> Tensor:
        """[C + 1, D] scores of a response's prefixes and of the whole. A cut response is a prefix, too.

        known [D]: the scores of the whole text. scorer_of: index of a dimension -> scorer of prefixes.
        """
        whole = self._prefix_scores(ids, known, scorer_of) if was_cut else known
        prefixes = [
            self._prefix_scores(ids[:length], known, scorer_of) if length < len(ids) else whole
            for length in PREFIX_LENGTHS
        ]
        return torch.stack([*prefixes, whole])

    def _prefix_scores(self, ids: list[int], known: Tensor, scorer_of: Mapping[int, str]) -> Tensor:
        """[D] scores of the text of ids; `known` of dimensions without scorer, NaN where that is NaN."""
        scores = known.clone()
        if scorer_of:
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            scores[list(scorer_of)] = torch.tensor(lexical_scores(text, tuple(scorer_of.values())))
        return torch.where(known.isnan(), known, scores)


def _count_pairs(scores: Tensor) -> list[int]:
    """Scores [R, N] -> for each of the N columns, the pairs with known and different scores."""
    first, second = scores.unsqueeze(0), scores.unsqueeze(1)
    differ = (first != second) & ~first.isnan() & ~second.isnan()
    return [int(count) // 2 for count in differ.sum((0, 1))]
