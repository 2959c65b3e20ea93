"""One step of the reward model: rewards of every row's candidates, in as few passes as its budget allows.

In: Asks. Out: rewards, NaN for a row that does not fit. Rows join by being asked for and leave by not being
asked for; where the cache is too small for all of them, rows that are done in this step lose their blocks
first, then those that are served last, and are prefilled again. It knows no text, no vLLM and no base model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_model.cache_capacity import BLOCK_SIZE
from pad_vllm.engines.reward_model.cached_row import KEPT_DIRECTIONS, CachedRow
from pad_vllm.engines.reward_model.forked_decoder import ForkedDecoder
from pad_vllm.engines.reward_model.forward_batch import RowChunk, pack_chunks
from pad_vllm.engines.reward_model.host_to_device import send_to_device
from pad_vllm.engines.reward_model.kv_blocks import BlockPool
from pad_vllm.engines.reward_model.scoring_request import (
    CandidateTree,
    Predecessor,
    ScoringRequest,
    build_candidate_tree,
)


@dataclass(eq=False)
class _Work:
    """A row of this step and what was computed for it."""

    place: int  # among the asks
    ask: ScoringRequest
    row: CachedRow
    tree: CandidateTree
    directions: dict[Predecessor, Tensor] = field(default_factory=dict)
    """d_w after a token or node."""

    @property
    def left(self) -> int:
        return len(self.ask.tokens) - len(self.row.tokens)

    def piece(self, count: int) -> RowChunk:
        """The next `count` tokens, with the candidates' nodes if these are the last."""
        start = len(self.row.tokens)
        tokens = self.ask.tokens[start : start + count]
        nodes = self.tree.nodes if count == self.left else []
        wanted = min(self.tree.first_position, len(self.ask.tokens) - KEPT_DIRECTIONS)
        return RowChunk(self.row.blocks, start, tokens, nodes, wanted)


@dataclass
class ScorerCounts:
    """Totals since a scorer was made."""

    steps: int = 0
    passes: int = 0
    tokens: int = 0
    nodes: int = 0
    preempted: int = 0


class RewardScorer:
    """Rewards from one PersRM and its cache."""

    def __init__(
        self,
        decoder: ForkedDecoder,
        adapter: Adapter,
        declined: FailureLog,
        *,
        exact: bool,
        budget: int,
    ) -> None:
        """exact: score all tokens of a candidate, not the first alone; budget: tokens a pass."""
        self._decoder, self._exact, self._budget = decoder, exact, budget
        A, B, C = adapter.heads
        device = decoder.device
        B = guidance.contiguous_for_direction(B.to(device))
        self._heads = (A.to(device), B, C if C is None else C.to(device))
        self._blocks = BlockPool(decoder.num_blocks, BLOCK_SIZE)
        self._rows: dict[int, CachedRow] = {}
        self.counts, self.failure_log = ScorerCounts(), declined

    @property
    def used_blocks(self) -> int:
        """Blocks that rows hold now."""
        return self._blocks.num_blocks - self._blocks.num_unused

    @torch.inference_mode()
    def __call__(self, asks: Sequence[ScoringRequest]) -> Tensor:
        """Rewards [G, K] float32; K is the most candidates of any row, and a row with fewer ends in zeros.
        NaN in a `must` row that does not fit into the cache.
        """
        self.counts.steps += 1
        staying = {ask.key for ask in asks}
        for key in [key for key in self._rows if key not in staying]:
            self._rows.pop(key).release()
        works = [self._enter(place, ask) for place, ask in enumerate(asks)]
        done = self._run(sorted(works, key=lambda work: (not work.ask.must_finish, work.left)))
        return self._rewards(asks, done)

    def _enter(self, place: int, ask: ScoringRequest) -> _Work:
        """The row, its cached tokens cut to those that this step can keep."""
        tree = build_candidate_tree(ask.tokens, ask.candidates, exact=self._exact)
        row = self._rows.setdefault(ask.key, CachedRow(self._blocks, self._decoder.copy_block))
        start = row.common_prefix_length(ask.tokens, ask.num_unchanged)
        kept = len(row.tokens) - len(
            row.last_directions
        )  # the first position whose direction is known
        if ask.candidates and tree.first_position < min(start, kept):
            start = tree.first_position
        if not row.truncate(start):
            row.release()
        work = _Work(place, ask, row, tree)
        first = len(row.tokens) - len(row.last_directions)
        work.directions.update(_after_tokens(row.last_directions, first))
        return work

    def _run(self, works: list[_Work]) -> list[_Work]:
        """Passes until every `must` row is done; the others fill what is left of the last one's budget."""
        done = [work for work in works if not work.left and not work.tree.nodes]
        queue = [work for work in works if work not in done]
        passes = 0
        while queue and (queue[0].ask.must_finish or not passes):
            taken = self._gather(queue, done)
            if not taken:  # it would not fit even with all other rows released
                self._decline(queue.pop(0))
                continue
            self._pass(taken)
            passes += 1
            finished = [work for work, _ in taken if not work.left]
            done += finished
            queue = [work for work in queue if work not in finished]
        return done

    def _gather(self, queue: list[_Work], done: list[_Work]) -> list[tuple[_Work, RowChunk]]:
        """The next pass, in the queue's order: as many tokens as budget and cache allow."""
        taken: list[tuple[_Work, RowChunk]] = []
        room, computed = self._budget, set()
        for work in queue:
            work.row.extend_from_cache(work.ask.tokens, work.tree.first_position)
            block = work.row.next_full_block(work.ask.tokens)
            if block is not None and block in computed:
                continue  # another row of this pass computes this block: share it in the next
            count = min(work.left, room)
            if not self._hold(work, count, queue, done):
                break
            computed.add(block)
            taken.append((work, work.piece(count)))
            room -= taken[-1][1].size
            if room <= 0:
                break
        return taken

    def _possible(self, work: _Work) -> bool:
        """Whether the cache and the backbone's positions could hold the row at all."""
        tokens, nodes = len(work.ask.tokens), work.tree.nodes
        last = max((node.position + 1 for node in nodes), default=0)
        fits = tokens + len(nodes) <= self._blocks.num_blocks * BLOCK_SIZE
        return fits and max(tokens, last) <= self._decoder.max_positions

    def _hold(self, work: _Work, count: int, queue: list[_Work], done: list[_Work]) -> bool:
        """Reserve blocks for `count` more tokens of the row, if need be by releasing other rows'."""
        if not self._possible(work):
            return False
        length = len(work.row.tokens) + count
        length += len(work.tree.nodes) if count == work.left else 0
        if work.row.reserve(length):
            return True
        idle = [*done, *reversed(queue[queue.index(work) + 1 :])] if work.ask.must_finish else []
        for victim in [other.row for other in idle if other.row.blocks]:
            victim.release()
            self.counts.preempted += 1
            if work.row.reserve(length):
                return True
        return False

    def _pass(self, taken: list[tuple[_Work, RowChunk]]) -> None:
        """Run the pieces, and keep the d_w that candidates or later steps need."""
        pieces = [piece for _, piece in taken]
        decoder = self._decoder
        made = pack_chunks(pieces, BLOCK_SIZE, decoder.kv_caches, decoder.device)
        weights = np.array([work.ask.w for work, _ in taken], np.float32)
        (w,) = send_to_device([weights], decoder.device)
        h_B, h_T = decoder.forward(made.ids, made.positions, made.batch, made.wanted)
        w = w.index_select(0, made.chunk_index)
        counts = [
            piece.end - min(max(piece.first_wanted, piece.start), piece.end) for piece in pieces
        ]
        directions = iter(guidance.reward_direction(h_B, h_T, w, *self._heads).unbind())
        for (work, piece), count in zip(taken, counts, strict=True):
            tail = [next(directions) for _ in range(count)]
            work.directions.update(_after_tokens(tail, piece.end - count))
            for node in range(len(piece.nodes)):
                work.directions[Predecessor(node, in_tree=True)] = next(directions)
            work.row.append(piece.tokens, tail)
        self.counts.passes += 1
        self.counts.tokens += sum(len(piece.tokens) for piece in pieces)
        self.counts.nodes += sum(len(piece.nodes) for piece in pieces)

    def _decline(self, work: _Work) -> None:
        work.row.release()
        size = f"{len(work.ask.tokens)} tokens and {len(work.tree.nodes)} of its candidates"
        self.failure_log.add(
            "no room", work.ask.must_finish, f"a row of {size} does not fit: it has no rewards"
        )

    def _rewards(self, asks: Sequence[ScoringRequest], done: list[_Work]) -> Tensor:
        """[G, K]: the sum of each candidate's terms; NaN for `must` rows that are not done."""
        device = self._decoder.device
        K = max((len(ask.candidates) for ask in asks), default=0)
        result = torch.zeros(len(asks) * K, device=device)
        terms = [(work, term) for work in done for term in work.tree.terms]
        if terms:
            number: dict[tuple[int, Predecessor], int] = {}
            after = [number.setdefault((w.place, t.predecessor), len(number)) for w, t in terms]
            where = {work.place: work for work in done}
            d_w = torch.stack([where[place].directions[at] for place, at in number])
            numbers = [
                (at, term.token, term.sign, work.place * K + term.candidate)
                for at, (work, term) in zip(after, terms, strict=True)
            ]
            (sent,) = send_to_device([np.array(numbers, np.int64).T], device)
            after_d, tokens, signs, places = sent
            last = len(self._decoder.lm_head_weight) - 1
            signs = signs * (tokens <= last)  # what this model does not know earns nothing
            known = tokens.clamp(max=last).unsqueeze(1)
            d_w = d_w.index_select(0, after_d)
            reward = guidance.token_rewards(d_w, known, self._decoder.lm_head_weight).squeeze(1)
            result.index_add_(0, places, reward * signs)
        result = result.view(len(asks), K)
        ended = {work.place for work in done}
        for place, ask in enumerate(asks):
            if ask.must_finish and place not in ended:
                result[place] = float("nan")
        return result


def _after_tokens(directions: Sequence[Tensor], start: int) -> dict[Predecessor, Tensor]:
    """d_w after tokens start, start + 1, ... of a row, by what it follows."""
    return {Predecessor(position): d_w for position, d_w in enumerate(directions, start=start)}
