"""One guided step: candidates, rewards, guards, rewritten logits, counts. guidance.py does the maths.

In: the logits of a step, its guided rows, V2's batch layout. Out: the guided rows rewritten in place. Under
tensor parallelism every rank takes part in the sum of the rewards, whatever failed on it: a row that cannot
be guided keeps the base's logits on all ranks, and is counted. It does not know how vLLM's runners announce
requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.answer_tokens import AnswerTokens, loop_prices
from pad_vllm.engines.reward_engine import StepCandidates
from pad_vllm.serving.worker.answer_token_reader import AnswerTokenReader
from pad_vllm.serving.worker.batch_slots import GuidedRows
from pad_vllm.serving.worker.instance import Instance
from pad_vllm.serving.worker.outcome_table import OutcomeTable
from pad_vllm.serving.worker.reasoning_rows import ReasoningRows
from pad_vllm.serving.worker.step_counters import StepCounters
from pad_vllm.vllm_api import parallel_ranks
from pad_vllm.vllm_api.patches.draft_rows import LogitsRows


@dataclass(frozen=True)
class StepTools:
    """What all steps of one logits processor work with."""

    rule: ModuleType
    """guidance.py, or the Triton kernels that compute the same (kernels/kernel_choice.py)."""

    instance: Instance
    """Holds the reward engine and the failure log."""

    outcome_table: OutcomeTable
    step_counters: StepCounters
    token_reader: AnswerTokenReader

    num_token_columns: int
    """Leading columns of the logits that may be candidates (start/vocabulary.py)."""

    device: torch.device
    """Of the logits."""

    end_tokens: tuple[int, ...]
    """From start/eos_tokens.py: the min-p guard leaves these tokens alone."""

    forced_eos_token_id: int | None
    """The token that ends a row without rewards (`on_failure` "stop"); None if such a row continues."""

    reasoning_rows: ReasoningRows | None
    """Given if reasoning stays unguided (`reasoning` "unguided")."""

    @cached_property
    def eos_token_ids(self) -> Tensor:
        """[E] int64, `end_tokens` on the device. Not allocated with the model (device_buffers.py)."""
        return torch.tensor(self.end_tokens, dtype=torch.int64, device=self.device)


class ScoredCandidates(NamedTuple):
    """The candidates of G guided rows and all that is known of them before a logit is changed."""

    z: Tensor  # [G, K] float32, the base's logits
    ids: Tensor  # [G, K] int64
    excluded: Tensor | None  # [G] bool, rows that are not to be guided in this step
    capped: Tensor | None  # [G, K] bool, candidates whose reward a guard caps at the row's mean
    prices: Tensor | None  # [G, K] float32, what candidates cost that would go on with a loop
    reward_share: Tensor  # [G, K] float32, this rank's share of the rewards
    seconds: float  # host time that the engine took for that share


class GuidedStep:
    """Guides the rows of one step, or of one slice of it."""

    def __init__(
        self,
        tools: StepTools,
        *,
        logits: Tensor,
        guided: GuidedRows,
        logits_rows: LogitsRows,
        ctx: Any,
    ) -> None:
        """Nothing is computed yet.

        Args:
            tools: of the logits processor.
            logits: [R, V] float32; `run` rewrites its guided rows in place.
            guided: the G guided ones of these rows.
            logits_rows: where these R rows stand among those of the whole step.
            ctx: V2's batch layout, None on V1.
        """
        self._tools, self._logits, self._guided = tools, logits, guided
        # Candidates are found among these columns; a guided row is written whole.
        self._token_logits = logits[:, : tools.num_token_columns]
        self._logits_rows, self._ctx = logits_rows, ctx
        self._failure_log = tools.instance.failure_log

    def run(self) -> None:
        """Rewrite the logits and count the rows."""
        end_token = self._tools.forced_eos_token_id
        # Before guided rows lose all but their candidates. A grammar or min_tokens may have masked it.
        may_end = (
            None if end_token is None else self._logits[self._guided.rows, end_token].isfinite()
        )
        scored = self._score_or_none()
        # Each rank must come here, whatever failed on it: the others would wait for its share. NaN in one
        # share is NaN in the sum, so that all ranks leave the same rows unguided.
        reward = parallel_ranks.sum_over_ranks(
            self._no_rewards() if scored is None else scored.reward_share
        )
        unguided = None if scored is None else self._rewrite_or_none(scored, reward)
        excluded = None if scored is None else scored.excluded
        if unguided is None:
            unguided, excluded = torch.ones_like(self._guided.rows, dtype=torch.bool), None
        self._tools.outcome_table.count_step(self._guided.outcome_rows, unguided, excluded)
        if end_token is not None and may_end is not None:
            self._end_unguided_rows(end_token, may_end)

    def _score_or_none(self) -> ScoredCandidates | None:
        try:
            return self._score_candidates()
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._log_failure(error)
            return None

    def _rewrite_or_none(self, scored: ScoredCandidates, reward: Tensor) -> Tensor | None:
        try:
            return self._rewrite_logits(scored, reward)
        except Exception as error:  # noqa: BLE001, it would end the server and all its requests
            self._log_failure(error)
            return None

    def _log_failure(self, error: Exception) -> None:
        message = "the reward engine failed: its rows stay unguided"
        self._failure_log.add("engine failed", len(self._guided.rows), message, error)

    def _score_candidates(self) -> ScoredCandidates:
        """All that may fail on one rank and not on another, before the ranks' rewards are summed."""
        answers = self._read_answers()  # first: it also writes what this step was fed
        z, ids = self._tools.rule.candidates(
            self._token_logits, self._guided.rows, self._guided.max_top_k
        )
        reward_share, seconds = self._reward_share(ids)
        return ScoredCandidates(
            z=z,
            ids=ids,
            excluded=self._excluded_rows(answers),
            capped=self._capped_candidates(z, ids, answers),
            prices=self._loop_prices(ids, answers),
            reward_share=reward_share,
            seconds=seconds,
        )

    def _reward_share(self, ids: Tensor) -> tuple[Tensor, float]:
        """This rank's share of the rewards of candidates ids [G, K], and the host seconds it took."""
        engine = self._tools.instance.engine
        first_row, num_step_rows = self._logits_rows.first_row, self._logits_rows.num_step_rows
        step = StepCandidates(
            num_logits_rows=num_step_rows,
            rows=self._guided.rows,
            ids=ids,
            w=self._guided.w,
            requests=self._guided.requests,
            instruction_weight=self._guided.instruction_weight,
            first_row=first_row,
            is_last_slice=first_row + len(self._logits) == num_step_rows,
        )
        started = time.perf_counter()
        share = None if engine is None else engine.rewards(step)
        seconds = time.perf_counter() - started
        if share is None:
            message = "no rewards for these logits rows: they stay unguided"
            self._failure_log.add("misaligned", len(ids), message)
            share = self._no_rewards()
        return share, seconds

    def _no_rewards(self) -> Tensor:
        """[G, K] float32 NaN: rewards that leave their rows unguided."""
        num_candidates = min(self._guided.max_top_k, self._token_logits.shape[-1])
        shape = len(self._guided.rows), num_candidates
        return torch.full(shape, float("nan"), device=self._logits.device)

    def _read_answers(self) -> AnswerTokens | None:
        """The answers' tokens, None if nothing in this step depends on them."""
        guided = self._guided
        reads_answer = guided.max_no_repeat or guided.max_loop_price
        if not reads_answer and self._tools.reasoning_rows is None:
            return None
        return self._tools.token_reader.read(guided, self._ctx)

    def _excluded_rows(self, answers: AnswerTokens | None) -> Tensor | None:
        """[G] bool: rows inside reasoning that stays unguided. None if all rows are guided."""
        reasoning_rows = self._tools.reasoning_rows
        if answers is None or reasoning_rows is None:
            return None
        return reasoning_rows.inside(answers, self._guided.slots)

    def _capped_candidates(
        self, z: Tensor, ids: Tensor, answers: AnswerTokens | None
    ) -> Tensor | None:
        """[G, K] bool: candidates that a guard keeps from a reward above the mean. None without guards."""
        guided = self._guided
        capped: Tensor | None = self._tools.rule.capped_candidates(
            z,
            ids,
            min_p=guided.min_p if guided.max_min_p else None,
            eos_token_ids=self._tools.eos_token_ids,
            answer=answers if guided.max_no_repeat else None,
            n=guided.no_repeat,
            max_n=guided.max_no_repeat,
        )
        return capped

    def _loop_prices(self, ids: Tensor, answers: AnswerTokens | None) -> Tensor | None:
        """[G, K] logits that candidates cost; None where no row asks for it."""
        guided = self._guided
        if answers is None or not guided.max_loop_price:
            return None
        return loop_prices(
            answers, ids, guided.no_repeat, guided.loop_price, self._tools.eos_token_ids
        )

    def _rewrite_logits(self, scored: ScoredCandidates, reward: Tensor) -> Tensor:
        """Write the guided scores; reward [G, K], summed over the ranks.

        Returns [G] bool: rows that stay unguided and should not, with a NaN or inf logit or score.
        """
        result: guidance.GuideResult = self._tools.rule.guide(
            self._logits,
            rows=self._guided.rows,
            z=scored.z,
            ids=scored.ids,
            reward=reward,
            beta=self._guided.beta,
            top_k=self._guided.top_k,
            capped=scored.capped,
            prices=scored.prices,
            excluded=scored.excluded,
        )
        try:
            self._tools.step_counters.count_step(result.unguided, result.changed, scored.seconds)
            if self._guided.explained_indices:
                self._store_explanations(scored, reward)
        except Exception as error:  # noqa: BLE001, the rows are guided all the same
            message = "the counts or the explanations of a step are lost"
            self._failure_log.add("not told", len(scored.z), message, error)
        if scored.excluded is None:
            return result.unguided
        return result.unguided & ~scored.excluded

    def _store_explanations(self, scored: ScoredCandidates, reward: Tensor) -> None:
        self._tools.outcome_table.add_explanations(
            self._guided,
            num_answer_tokens=self._tools.token_reader.num_tokens(self._guided, self._ctx),
            ids=scored.ids,
            rewards=guidance.centred_rewards(scored.z, reward, self._guided.top_k),
        )

    def _end_unguided_rows(self, end_token: int, may_end: Tensor) -> None:
        """End the answers that have had an unguided step; may_end [G] bool: where they may. One that ignores
        the end token goes on: it would be nothing but end tokens.
        """
        outcome_table, guided = self._tools.outcome_table, self._guided
        ending = outcome_table.had_unguided_step(guided.outcome_rows)
        ending = ending & may_end & ~guided.ignores_eos
        guidance.force_end_token(self._logits, guided.rows, end_token, ending)
        outcome_table.count_stopped(guided.outcome_rows, ending)
