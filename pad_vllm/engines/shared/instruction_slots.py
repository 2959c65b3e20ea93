"""Which reserved KV blocks hold which instruction. Bounded: the least recently used one goes, those in use
stay.

In: instructions, joining and leaving the batch. Out: slot numbers. Knows no tensor and no model.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from pad_vllm.instruction import Instruction

Key = tuple[int, Instruction]
"""How often the weights had changed when it was read, and the instruction: old keys and values are not used.
"""


@dataclass
class _Held:
    slot: int
    num_users: int = 0


class InstructionSlots:
    """A fixed number of slots, each for one instruction."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(reversed(range(num_slots)))
        self._held: OrderedDict[Key, _Held] = OrderedDict()  # least recently used first

    def acquire(self, key: Key) -> tuple[int, bool] | None:
        """One more request uses an instruction.

        Returns:
            Its slot, and whether it is new there and has to be read; None if other instructions in use have
            all slots.
        """
        held = self._held.get(key)
        is_new = held is None
        if held is None:
            slot = self._take_slot()
            if slot is None:
                return None
            held = self._held[key] = _Held(slot)
        held.num_users += 1
        self._held.move_to_end(key)
        return held.slot, is_new

    def release(self, key: Key) -> None:
        """A request that acquired an instruction left. Its slot keeps it until another needs the slot."""
        self._held[key].num_users -= 1

    def discard(self, key: Key) -> None:
        """An instruction could not be read: whoever asked for it does not have it, and the slot is free."""
        self._free.append(self._held.pop(key).slot)

    def _take_slot(self) -> int | None:
        if self._free:
            return self._free.pop()
        unused = [key for key, held in self._held.items() if not held.num_users]
        return self._held.pop(unused[0]).slot if unused else None
