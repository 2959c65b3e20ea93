"""What the reward model is asked for one row of one step, and the tree of tokens its candidates make.

A candidate is a Change of the row's tokens. Its reward is Psi of the changed tokens less Psi of the
tokens as they are, Psi the sum of R_w over the answer: the same text earns the same reward, however a
tokenizer cuts it. `first` stops after a candidate's first new token and needs no tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pad_vllm.text.incremental_encoding import TokenChange


@dataclass(frozen=True)
class ScoringRequest:
    """One row of one step."""

    key: int
    """The row's own number while it is in the batch."""

    tokens: Sequence[int]
    """The reward model's tokens, prompt and answer so far; at least one. They are the row's own list, which
    grows in the next step: whoever needs them longer copies what changed."""

    w: tuple[float, ...]
    """Preference weights, the same in all steps of a row."""

    candidates: Sequence[TokenChange] = ()
    """The candidates; none where the row's tokens are only prefilled."""

    must_finish: bool = True
    """False: prefill with what is left of the step's token budget, and go on in the next step."""

    num_unchanged: int = 0
    """At least so many of the first tokens are those of every ask for this key since the last one that was
    answered, that one included; 0 where nothing is known."""


def common_prefix_length(known: Sequence[int], wanted: Sequence[int], stays: int) -> int:
    """How many tokens two rows begin with alike; at least the first `stays` are, as far as both go."""
    n = min(len(known), len(wanted))
    if known[stays:n] == wanted[stays:n]:
        return n
    return next(place for place in range(stays, n) if known[place] != wanted[place])


class TreeNode(NamedTuple):
    """One token of a candidate that another of its tokens follows."""

    token: int
    position: int
    ancestors: tuple[int, ...]
    """Its ancestors among the nodes, root first."""


class Predecessor(NamedTuple):
    """What a token comes after."""

    token_index: int
    """Position in the row's tokens, or number of the node."""

    in_tree: bool = False
    """Whether it is a node."""


class RewardTerm(NamedTuple):
    """One summand of a candidate's reward: sign * R_w(token) after `after`."""

    candidate: int
    token: int
    sign: int
    predecessor: Predecessor


@dataclass(frozen=True)
class CandidateTree:
    """All candidates of one row."""

    nodes: list[TreeNode]
    terms: list[RewardTerm]
    first_position: int
    """The earliest position whose hidden state a term needs; the last one where there is no term."""


def build_candidate_tree(
    tokens: Sequence[int], changes: Sequence[TokenChange], *, exact: bool
) -> CandidateTree:
    """The nodes to run and the terms to add up; candidates that begin alike share nodes."""
    nodes: list[TreeNode] = []
    terms: list[RewardTerm] = []
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    for candidate, (keep, added) in enumerate(changes):
        terms += [
            RewardTerm(candidate, tokens[place], -1, Predecessor(place - 1))
            for place in range(keep, len(tokens))
        ]
        after = Predecessor(keep - 1)
        above: tuple[int, ...] = ()
        for depth, token in enumerate(added if exact else added[:1]):
            terms.append(RewardTerm(candidate, token, 1, after))
            if depth + 1 == len(added) or not exact:
                break
            key = (keep, added[: depth + 1])
            if key not in known:
                known[key] = len(nodes)
                nodes.append(TreeNode(token, keep + depth, above))
            after, above = Predecessor(known[key], in_tree=True), (*above, known[key])
    first = min(
        (term.predecessor.token_index for term in terms if not term.predecessor.in_tree),
        default=len(tokens) - 1,
    )
    return CandidateTree(nodes, terms, min(first, len(tokens) - 1))
