"""One step of the reward model: rewards of every row's candidates, in as few passes as its budget allows.

In: ScoringRequests. Out: rewards, NaN for a row that does not fit. The scorer caches the rows of the last
call: a row is new when a first request has its key, and leaves when a call has none. Where the cache is too
small for all rows, those that are done in this step lose their blocks first, then those that are served
last; they are prefilled again. It knows no text, no vLLM and no base model.
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
class _RowWork:
    """A row of this step, and what was computed for it."""

    index: int  # among the step's requests
    request: ScoringRequest
    row: CachedRow
    tree: CandidateTree
    directions: dict[Predecessor, Tensor] = field(default_factory=dict)
    """d_w after a token or node, [H] float32."""

    @property
    def num_remaining(self) -> int:
        """Tokens that are not cached yet."""
        return len(self.request.tokens) - len(self.row.tokens)

    def next_chunk(self, count: int) -> RowChunk:
        """The next `count` tokens, with the candidates' nodes if these are the last."""
        tokens, start = self.request.tokens, len(self.row.tokens)
        return RowChunk(
            blocks=self.row.blocks,
            start=start,
            tokens=tokens[start : start + count],
            nodes=self.tree.nodes if count == self.num_remaining else [],
            first_wanted=min(self.tree.first_position, len(tokens) - KEPT_DIRECTIONS),
        )


@dataclass
class ScorerCounts:
    """Totals since a scorer was made."""

    steps: int = 0
    passes: int = 0
    tokens: int = 0
    """Rows' own tokens that were computed."""

    nodes: int = 0
    """Candidates' tokens that were computed."""

    preempted: int = 0
    """Rows that lost their blocks to another row."""


class RewardScorer:
    """Rewards from one PersRM and its cache."""

    def __init__(
        self,
        decoder: ForkedDecoder,
        adapter: Adapter,
        failure_log: FailureLog,
        *,
        exact: bool,
        budget: int,
    ) -> None:
        """Make a scorer without rows.

        Args:
            decoder: the backbone, forked, and its KV cache; used by no other scorer.
            adapter: its heads are used.
            failure_log: counts the rows that do not fit.
            exact: score all tokens of a candidate, not only the first.
            budget: tokens that one pass computes; nodes count too, and those of the last row may exceed it.
        """
        self._decoder, self._exact, self._budget = decoder, exact, budget
        heads = adapter.heads.on_device(decoder.device)
        self._heads = heads._replace(B=guidance.contiguous_for_direction(heads.B))
        self._sums_at_first = self._sums_of_heads()
        self._pool = BlockPool(decoder.num_blocks, BLOCK_SIZE)
        self._rows: dict[int, CachedRow] = {}
        self.counts, self.failure_log = ScorerCounts(), failure_log

    def _sums_of_heads(self) -> list[float]:
        return [float(head.sum()) for head in self._heads if head is not None]

    def require_own_weights(self) -> None:
        """Raises RuntimeError where the heads are no longer what was loaded. All that the reward model has on
        the device was allocated with them.
        """
        if self._sums_of_heads() != self._sums_at_first:
            raise RuntimeError(
                "the reward model lost its weights, which vLLM's sleep mode must not discard. Start the "
                "server again, without --enable-sleep-mode or with the ray engine."
            )

    @property
    def used_blocks(self) -> int:
        """Blocks that rows hold now."""
        return self._pool.num_blocks - self._pool.num_unused

    @torch.inference_mode()
    def __call__(self, requests: Sequence[ScoringRequest]) -> Tensor:
        """Rewards [G, K] float32 on the decoder's device. K is the most candidates of any row, and a row with
        fewer ends in zeros. NaN in a `must_finish` row that does not fit into the cache.
        """
        self.counts.steps += 1
        requested = {request.key for request in requests}
        for key in [key for key in self._rows if key not in requested]:
            self._rows.pop(key).release()
        works = [self._start_row(index, request) for index, request in enumerate(requests)]
        finished = self._run_passes(works)
        return self._sum_rewards(requests, finished)

    def _start_row(self, index: int, request: ScoringRequest) -> _RowWork:
        """The request's row, its cached tokens cut to those that this step can keep."""
        tree = build_candidate_tree(request.tokens, request.candidates, exact=self._exact)
        row = self._rows.get(request.key)
        if row is None:
            row = self._rows[request.key] = CachedRow(self._pool, self._decoder.copy_block)
        num_kept = row.common_prefix_length(request.tokens, request.num_unchanged)
        first_direction = len(row.tokens) - len(row.last_directions)
        if request.candidates and tree.first_position < min(num_kept, first_direction):
            num_kept = tree.first_position  # the tokens from there on are run again for their d_w
        if not row.truncate(num_kept):
            row.release()
        work = _RowWork(index, request, row, tree)
        first_direction = len(row.tokens) - len(row.last_directions)
        work.directions.update(_by_position(row.last_directions, first_direction))
        return work

    def _run_passes(self, works: list[_RowWork]) -> list[_RowWork]:
        """Run passes until every `must_finish` row is done; the others fill what the last pass has left of
        its budget. Returns the rows that are done.
        """
        works = sorted(works, key=lambda work: (not work.request.must_finish, work.num_remaining))
        finished = [work for work in works if not work.num_remaining and not work.tree.nodes]
        queue = [work for work in works if work not in finished]
        num_passes = 0
        while queue and (queue[0].request.must_finish or not num_passes):
            chunks = self._next_pass(queue, finished)
            if not chunks:  # the first row would not fit even with all other rows released
                self._report_no_room(queue.pop(0))
                continue
            self._run_pass(chunks)
            num_passes += 1
            done = [work for work, _ in chunks if not work.num_remaining]
            finished += done
            queue = [work for work in queue if work not in done]
        return finished

    def _next_pass(
        self, queue: list[_RowWork], finished: list[_RowWork]
    ) -> list[tuple[_RowWork, RowChunk]]:
        """The next pass, in the queue's order: as many tokens as budget and cache allow."""
        chunks: list[tuple[_RowWork, RowChunk]] = []
        room, computed_blocks = self._budget, set()
        for work in queue:
            tokens = work.request.tokens
            work.row.extend_from_cache(tokens, work.tree.first_position)
            block = work.row.next_full_block(tokens)
            if block is not None and block in computed_blocks:
                continue  # another row of this pass computes this block: share it in the next pass
            count = min(work.num_remaining, room)
            if not self._reserve_blocks(work, count, queue, finished):
                break
            computed_blocks.add(block)
            chunk = work.next_chunk(count)
            chunks.append((work, chunk))
            room -= chunk.size
            if room <= 0:
                break
        return chunks

    def _reserve_blocks(
        self, work: _RowWork, count: int, queue: list[_RowWork], finished: list[_RowWork]
    ) -> bool:
        """Reserve blocks for `count` more tokens of the row; a `must_finish` row may take those of rows that
        are finished, then of those at the end of the queue. False where too few are left.
        """
        if not self._fits_alone(work):
            return False
        length = len(work.row.tokens) + count
        length += len(work.tree.nodes) if count == work.num_remaining else 0
        if work.row.reserve(length):
            return True
        if not work.request.must_finish:
            return False
        others = [*finished, *reversed(queue[queue.index(work) + 1 :])]
        for victim in [other.row for other in others if other.row.blocks]:
            victim.release()
            self.counts.preempted += 1
            if work.row.reserve(length):
                return True
        return False

    def _fits_alone(self, work: _RowWork) -> bool:
        """Whether the whole cache and the backbone's positions could hold the row."""
        num_tokens, nodes = len(work.request.tokens), work.tree.nodes
        num_positions = max([num_tokens, *(node.position + 1 for node in nodes)])
        num_slots = self._pool.num_blocks * BLOCK_SIZE
        return num_tokens + len(nodes) <= num_slots and num_positions <= self._decoder.max_positions

    def _report_no_room(self, work: _RowWork) -> None:
        work.row.release()
        size = f"{len(work.request.tokens)} tokens and {len(work.tree.nodes)} of its candidates"
        message = f"a row of {size} does not fit: it has no rewards"
        self.failure_log.add("no room", work.request.must_finish, message)

    def _run_pass(self, chunks: list[tuple[_RowWork, RowChunk]]) -> None:
        """Run the chunks, and store the d_w that candidates or later steps need."""
        row_chunks = [chunk for _, chunk in chunks]
        decoder = self._decoder
        packed = pack_chunks(row_chunks, BLOCK_SIZE, decoder.kv_caches, decoder.device)
        weights = np.array([work.request.w for work, _ in chunks], np.float32)
        (w,) = send_to_device([weights], decoder.device)
        h_B, h_T = decoder.forward(
            packed.ids, packed.positions, packed.batch, packed.output_indices
        )
        w = w.index_select(0, packed.chunk_index)
        d_w = iter(guidance.reward_direction(h_B, h_T, w, *self._heads).unbind())
        for work, chunk in chunks:
            wanted = len(chunk.tokens) - chunk.num_before_wanted
            directions = [next(d_w) for _ in range(wanted)]
            work.directions.update(_by_position(directions, chunk.end - wanted))
            for node in range(len(chunk.nodes)):
                work.directions[Predecessor(node, in_tree=True)] = next(d_w)
            work.row.append(chunk.tokens, directions)
        self.counts.passes += 1
        self.counts.tokens += sum(len(chunk.tokens) for chunk in row_chunks)
        self.counts.nodes += sum(len(chunk.nodes) for chunk in row_chunks)

    def _sum_rewards(self, requests: Sequence[ScoringRequest], finished: list[_RowWork]) -> Tensor:
        """[G, K]: the sum of each candidate's terms; NaN in `must_finish` rows that are not finished."""
        K = max((len(request.candidates) for request in requests), default=0)
        result = torch.zeros(len(requests) * K, device=self._decoder.device)
        if any(work.tree.terms for work in finished):
            self._add_terms(result, finished, K)
        result = result.view(len(requests), K)
        finished_rows = {work.index for work in finished}
        for index, request in enumerate(requests):
            if request.must_finish and index not in finished_rows:
                result[index] = float("nan")
        return result

    def _add_terms(self, result: Tensor, finished: list[_RowWork], K: int) -> None:
        """Add every term's reward to its candidate in result [G * K], in place. Each d_w is stacked once."""
        directions: list[Tensor] = []
        numbers = []
        for work in finished:
            direction_of: dict[Predecessor, int] = {}
            for term in work.tree.terms:
                if term.predecessor not in direction_of:
                    direction_of[term.predecessor] = len(directions)
                    directions.append(work.directions[term.predecessor])
                candidate = work.index * K + term.candidate
                numbers.append((direction_of[term.predecessor], term.token, term.sign, candidate))
        (columns,) = send_to_device([np.array(numbers, np.int64).T], result.device)
        direction_indices, tokens, signs, candidates = columns
        embedding = self._decoder.lm_head_weight
        last = len(embedding) - 1
        signs = signs * (tokens <= last)  # a token that this model does not have has reward 0
        known_tokens = tokens.clamp(max=last).unsqueeze(1)
        d_w = torch.stack(directions).index_select(0, direction_indices)
        rewards = guidance.token_rewards(d_w, known_tokens, embedding).squeeze(1)
        result.index_add_(0, candidates, rewards * signs)


def _by_position(directions: Sequence[Tensor], start: int) -> dict[Predecessor, Tensor]:
    """d_w after the tokens at start, start + 1, ... of a row, [H] each, by what it follows."""
    return {Predecessor(position): d_w for position, d_w in enumerate(directions, start=start)}
