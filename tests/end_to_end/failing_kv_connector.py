"""A KV connector whose loads fail, as those of a store that was cleared between look-up and load."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector


class FailingConnector(ExampleConnector):
    """Finds and stores as vLLM's example does, and loads nothing."""

    _failed: frozenset[int] = frozenset()

    def start_load_kv(self, *_args: Any, **_kwargs: Any) -> None:
        """Leave the blocks as they are."""
        requests = self._get_connector_metadata().requests
        slots = [one.slot_mapping for one in requests if not one.is_store]
        self._failed = frozenset(
            slot // self._block_size for part in slots for slot in part.tolist()
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Those blocks, once."""
        failed, self._failed = self._failed, frozenset()
        return set(failed)
