"""Records into prompt groups: tokenized, cut to their limits, prefixes scored.

In: records, a tokenizer, the dimensions' names. Out: a `PromptGroup` for each usable record, and a count of
the records and responses that were dropped or cut, by reason. Knows nothing of models, nor where records come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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

    unlabelled_responses: int = 0
    """Responses dropped: they were cut, and no scorer of theirs can score what is left."""

    uninformative: int = 0
    """Records dropped: no dimension scores two of their responses differently."""

    pairs: dict[str, int] = field(default_factory=dict)
    """Dimension -> pairs of whole responses with known and different scores."""

    def add(self, other: GroupingCounts) -> None:
        """Add the counts of another source."""
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
        for dimension, pairs in other.pairs.items():
            self.pairs[dimension] = self.pairs.get(dimension, 0) + pairs


def with_token_ids(
    records: Iterable[PreferenceRecord], tokenizer: Any
) -> Iterator[PreferenceRecord]:
    """The records, every response with its token ids; those of an engine stay as they were sampled.

    The end-of-sequence token that ends the model's turn is the last one.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for record in records:
        responses = []
        for response in record.responses:
            ids = response.token_ids
            if not ids:
                ids = [*tokenizer(response.text, add_special_tokens=False)["input_ids"], *end]
            responses.append(response.model_copy(update={"token_ids": ids}))
        yield record.model_copy(update={"responses": responses})


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
        max_response: tokens; longer responses are cut, and have no score but what a scorer gives the rest.
        weight_of_source: label -> weight (`data_spec.weight_by_label`); 1 for a source that is not in it.

    Returns:
        (groups in the records' order, source -> counts of what was made and dropped).
    """
    builder = _GroupBuilder(tokenizer, dimensions, max_prompt, max_response)
    counts_of: dict[str, GroupingCounts] = {}
    groups = []
    for record in with_token_ids(records, tokenizer):
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
        seen = set()
        # Whole ones first: of two with the same tokens the whole one is kept, which has its score.
        for response in sorted(record.responses, key=lambda one: self._response_ids(one)[1]):
            ids, was_cut = self._response_ids(response)
            counts.cut_responses += was_cut
            if tuple(ids) in seen:
                counts.duplicate_responses += 1
                continue
            seen.add(tuple(ids))
            known = torch.tensor([response.scores.get(name, torch.nan) for name in self.dimensions])
            if was_cut:  # a score belongs to the whole: only a scorer can tell that of what is left
                known = _known_where(known, scorer_of)
                if known.isnan().all():
                    counts.unlabelled_responses += 1
                    continue
            scores_by_ids[tuple(ids)] = self._scores(ids, known, scorer_of, was_cut=was_cut)
        if not scores_by_ids:
            counts.uninformative += 1
            return None
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
        """Token ids of a response of `with_token_ids`, and whether they were cut."""
        ids = response.token_ids or []
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


def _known_where(known: Tensor, scorer_of: Mapping[int, str]) -> Tensor:
    """known [D], NaN in the dimensions that have no scorer of prefixes."""
    kept = torch.full_like(known, torch.nan)
    for dimension in scorer_of:
        kept[dimension] = known[dimension]
    return kept


def _count_pairs(scores: Tensor) -> list[int]:
    """Scores [R, N] -> for each of the N columns, the pairs with known and different scores."""
    first, second = scores.unsqueeze(0), scores.unsqueeze(1)
    differ = (first != second) & ~first.isnan() & ~second.isnan()
    return [int(count) // 2 for count in differ.sum((0, 1))]
