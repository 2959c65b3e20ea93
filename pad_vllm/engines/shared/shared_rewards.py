"""R_w from the hidden states that the forked model kept for this step.

In: h_B and h_T of the step's logits rows. Out: rewards of candidates. It does not know how the model
was forked, and needs nothing of a request but its weights.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import pad

from pad_vllm import guidance
from pad_vllm.engines.reward_engine import RewardEngine, StepCandidates
from pad_vllm.engines.shared import adapter_heads
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows


class SharedRewards(RewardEngine):
    """One a model. The hidden states are kept by reference, and released with the last rows of a step."""

    def __init__(
        self,
        head_A: Tensor,
        head_B: Tensor,
        embedding: LmHeadRows,
        head_C: Tensor | None = None,
        own: Callable[[adapter_heads.HeadTensors], None] = lambda _: None,
    ) -> None:
        """Heads [D, r, H], [D, H, r] and [D, H] float32; embedding: the rows of lm_head; own: called with
        the heads that are read, and with those that take their place.
        """
        self._embedding, self._own = embedding, own
        self._take((head_A, head_B, head_C))
        self._kept: tuple[Tensor, Tensor] | None = None

    def insert_heads(self, place: int, more: adapter_heads.HeadTensors) -> None:
        """Between steps: the heads of one more adapter, from `place` on. See heads.put."""
        here = adapter_heads.heads_on_device(more, self._heads[0].device)
        self._take(adapter_heads.insert_heads(self._heads, place, here))

    def remove_heads(self, place: int, count: int, left: int) -> None:
        """Between steps: an adapter that no request in the batch has. See heads.drop."""
        self._take(adapter_heads.remove_heads(self._heads, place, count, left))

    def _take(self, made: adapter_heads.HeadTensors) -> None:
        A, B, C = made
        self._heads: adapter_heads.HeadTensors = (A, guidance.contiguous_for_direction(B), C)
        self._own(self._heads)

    def store_states(self, h_B: Tensor, h_T: Tensor) -> None:
        """Hidden states [R, H] of the rows whose logits are computed now."""
        self._kept = (h_B, h_T)

    def discard_states(self) -> None:
        """They could not be kept: the next step's rows have none."""
        self._kept = None

    def rewards(self, step: StepCandidates) -> Tensor | None:
        """See engines.base.RewardEngine."""
        kept = self._kept
        if step.is_last_slice:
            self._kept = None
        if kept is None or len(kept[0]) != step.num_logits_rows:
            return None

        def guided(hidden: Tensor) -> Tensor:
            return hidden[step.first_row :].index_select(0, step.rows).float()

        h_T = guided(kept[1])
        h_B = h_T if kept[0] is kept[1] else guided(kept[0])  # the same where nothing is forked
        w = step.w
        if more := len(self._heads[0]) - w.shape[1]:
            w = pad(w, (0, more))  # adapters come and go: a row may know of fewer than there are
        d_w = guidance.reward_direction(h_B, h_T, w, *self._heads)
        return self._embedding.rewards(d_w, step.ids)
