"""What the reward model is asked for one row of one step, and the tree of tokens that its candidates make.

A candidate is a TokenChange of the row's tokens. Its reward is Psi of the changed tokens less Psi of the
tokens as they are, where Psi is the sum of R_w over the answer: so the same text has the same reward, however
a tokenizer cuts it. Without `exact` only a candidate's first new token is scored, and there is no tree.
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
    """The row's number, the same in all steps while it is in the batch."""

    tokens: Sequence[int]
    """The reward model's tokens, prompt and answer so far; at least one. This is the row's own list, which
    grows in the next step: code that needs the tokens longer copies what changed."""

    w: tuple[float, ...]
    """[D] preference weights, the same in all steps of a row."""

    candidates: Sequence[TokenChange] = ()
    """The candidates, best first; none where the row's tokens are only prefilled."""

    must_finish: bool = True
    """True: the row must be computed to its end in this step, or its rewards are NaN. False: prefill it with
    what is left of the step's token budget, and go on in the next step."""

    num_unchanged: int = 0
    """At least so many of the first tokens are the same in every request with this key since the last one
    that was answered, that one included; 0 where nothing is known. Saves comparing them."""


def common_prefix_length(first: Sequence[int], second: Sequence[int], num_equal: int) -> int:
    """How many tokens two rows have in common from the start.

    Args:
        first: one row's tokens.
        second: the other row's.
        num_equal: so many of the first tokens are known to be equal, as far as both rows go, and are not
            compared.
    """
    shorter = min(len(first), len(second))
    if first[num_equal:shorter] == second[num_equal:shorter]:
        return shorter
    return next(i for i in range(num_equal, shorter) if first[i] != second[i])


class TreeNode(NamedTuple):
    """A token of a candidate that the model must run, since another of the candidate's tokens follows it."""

    token: int
    position: int
    ancestors: tuple[int, ...]
    """Indices of its ancestors among the tree's nodes, root first."""


class Predecessor(NamedTuple):
    """The token that another one comes after."""

    number: int
    """Position in the row's tokens, or index among the tree's nodes."""

    in_tree: bool = False
    """Whether it is a node of the candidates' tree."""


class RewardTerm(NamedTuple):
    """One summand of a candidate's reward: sign * R_w(token), in the state after `predecessor`."""

    candidate: int
    """Index of the candidate."""

    token: int
    sign: int
    """1 for a token that the candidate adds, -1 for one that it takes back."""

    predecessor: Predecessor


@dataclass(frozen=True)
class CandidateTree:
    """All candidates of one row."""

    nodes: list[TreeNode]
    """Tokens to run after the row's own; parents come before their children."""

    terms: list[RewardTerm]
    first_position: int
    """The earliest position in the row whose hidden state a term needs; the last one without terms."""


def build_candidate_tree(
    tokens: Sequence[int], candidates: Sequence[TokenChange], *, exact: bool
) -> CandidateTree:
    """The nodes to run and the terms to add up; candidates that begin alike share nodes.

    Args:
        tokens: the row's tokens.
        candidates: changes of them.
        exact: score all of a candidate's new tokens, not only the first.
    """
    nodes: list[TreeNode] = []
    terms: list[RewardTerm] = []
    node_of: dict[tuple[int, tuple[int, ...]], int] = {}  # (kept tokens, path) -> index
    for candidate, (num_kept, added) in enumerate(candidates):
        terms += [
            RewardTerm(candidate, tokens[position], -1, Predecessor(position - 1))
            for position in range(num_kept, len(tokens))
        ]
        predecessor = Predecessor(num_kept - 1)
        ancestors: tuple[int, ...] = ()
        for depth, token in enumerate(added if exact else added[:1]):
            terms.append(RewardTerm(candidate, token, 1, predecessor))
            if depth + 1 == len(added) or not exact:
                break
            path = (num_kept, added[: depth + 1])
            if path not in node_of:
                node_of[path] = len(nodes)
                nodes.append(TreeNode(token, num_kept + depth, ancestors))
            node = node_of[path]
            predecessor, ancestors = Predecessor(node, in_tree=True), (*ancestors, node)
    last = len(tokens) - 1
    in_row = [term.predecessor.number for term in terms if not term.predecessor.in_tree]
    return CandidateTree(nodes, terms, min([*in_row, last]))
