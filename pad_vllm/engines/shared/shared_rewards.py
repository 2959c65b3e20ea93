"""R_w from the hidden states that the forked model hands over in each step.

In: h_B and h_T of the step's logits rows. Out: rewards of candidates. It does not know how the model was
forked, and needs only the weights of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torch.nn.functional import pad

from pad_vllm import guidance
from pad_vllm.adapter.learned_prefix import LearnedPrefix
from pad_vllm.engines.reward_engine import GuidedRequest, RewardEngine, StepCandidates
from pad_vllm.engines.shared import adapter_heads
from pad_vllm.engines.shared.instruction_stream import InstructionStream
from pad_vllm.engines.shared.lm_head_rows import LmHeadRows
from pad_vllm.guidance import HeadTensors


class SharedRewards(RewardEngine):
    """The reward engine inside the served model; see RewardEngine. One a model.

    The hidden states are stored by reference, and released with the last rows of a step.
    """

    def __init__(
        self,
        heads: HeadTensors,
        rows: LmHeadRows,
        on_heads_changed: Callable[[HeadTensors], None] = lambda _: None,
        instructions: InstructionStream | None = None,
    ) -> None:
        """Make an engine with the heads of one adapter, on the device of the model.

        Args:
            heads: of D dimensions, float32.
            rows: the rows of lm_head on this rank.
            on_heads_changed: called with the heads that this engine reads, now and after each change.
            instructions: what the reward stream reads; None where it has LoRA, or is the base stream.
        """
        self._rows, self._on_heads_changed = rows, on_heads_changed
        self._instructions = instructions
        self._set_heads(heads)
        self._states: tuple[Tensor, Tensor] | None = None

    def insert_heads(self, offset: int, new: HeadTensors) -> None:
        """Between steps: add the heads of one more adapter, its first dimension at index `offset`."""
        new = new.on_device(self._heads.A.device)
        self._set_heads(adapter_heads.insert_heads(self._heads, offset, new))

    def remove_heads(self, offset: int, count: int, num_used: int) -> None:
        """Between steps: remove the heads of an adapter that no request in the batch uses.

        Args:
            offset: index of its first dimension.
            count: its number of dimensions.
            num_used: one more than the last index that is still in use.
        """
        self._set_heads(adapter_heads.remove_heads(self._heads, offset, count, num_used))

    def add_prefixes(self, adapter: str, prefixes: Iterable[LearnedPrefix]) -> None:
        """Between steps: the learned prefixes of one more adapter. Without instructions none is read.

        adapter: a name that no other served adapter has.
        """
        if self._instructions is not None:
            self._instructions.add_learned(adapter, prefixes)

    def remove_prefixes(self, adapter: str) -> None:
        """Between steps: no request in the batch uses this adapter."""
        if self._instructions is not None:
            self._instructions.learned.remove(adapter)

    def _set_heads(self, heads: HeadTensors) -> None:
        self._heads = heads._replace(B=guidance.contiguous_for_direction(heads.B))
        self._on_heads_changed(self._heads)

    def follow_batch(self, requests: Mapping[int, GuidedRequest]) -> None:
        """See RewardEngine."""
        if self._instructions is not None:
            self._instructions.batch = requests

    def on_request_assigned(self, request: GuidedRequest) -> None:
        """See RewardEngine. A new instruction is read here, by a forward of its own."""
        if self._instructions is not None:
            self._instructions.join(request)

    def on_request_left(self, request: GuidedRequest) -> None:
        """See RewardEngine."""
        if self._instructions is not None:
            self._instructions.leave(request)

    def on_slot_freed(self, slot: int) -> None:
        """V2: the request in a batch slot ended, before another takes it."""
        if self._instructions is not None:
            self._instructions.leave_slot(slot)

    def on_weights_changed(self) -> None:
        """See RewardEngine: instructions are read anew."""
        if self._instructions is not None:
            self._instructions.on_weights_changed()

    def store_states(self, h_B: Tensor, h_T: Tensor) -> None:
        """Store the hidden states, [R, H] each, of the rows whose logits are computed now."""
        self._states = (h_B, h_T)

    def discard_states(self) -> None:
        """`store_states` raised an error: no row of this step gets rewards."""
        self._states = None

    def rewards(self, step: StepCandidates) -> Tensor | None:
        """See RewardEngine. Does not wait for the device."""
        states = self._states
        if step.is_last_slice:
            self._states = None
        if states is None or len(states[0]) != step.num_logits_rows:
            return None

        def guided_rows(hidden: Tensor) -> Tensor:
            return hidden[step.first_row :].index_select(0, step.rows).float()

        h_T = guided_rows(states[1])
        # With heads only both states are one tensor.
        h_B = h_T if states[0] is states[1] else guided_rows(states[0])
        w = step.w
        # Adapters come and go: the step's weights may have fewer dimensions than there are heads.
        if num_missing := len(self._heads.A) - w.shape[1]:
            w = pad(w, (0, num_missing))
        if self._instructions is None:
            d_w = guidance.reward_direction(h_B, h_T, w, *self._heads)
        else:
            # No LoRA: the heads were trained on the base's states.
            d_w = guidance.reward_direction(h_B, h_B, w, *self._heads)
            if step.instruction_weight is not None:
                d_w = d_w + step.instruction_weight.unsqueeze(-1) * (h_T - h_B)
        return self._rows.rewards(d_w, step.ids)
