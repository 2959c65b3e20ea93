"""V2: tells a model when a request leaves its slot. Logits processors of V2 learn only of the next one there.

A model may have a ModelState of its own (`get_model_state_cls`, vllm/v1/worker/gpu/model_states). Knows
nothing of what is done then.
"""

from __future__ import annotations

from typing import Any


def state_class_with_removals() -> type:
    """A DefaultModelState that calls its model's `pad_on_slot_freed(slot)`, once for each request."""
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    class StateWithRemovals(DefaultModelState):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._slots: dict[str, int] = {}

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            self._slots[new_req_data.req_id] = req_index

        def remove_request(self, req_id: str) -> None:
            super().remove_request(req_id)
            slot = self._slots.pop(req_id, None)
            if slot is not None:
                self.model.pad_on_slot_freed(slot)

    return StateWithRemovals
