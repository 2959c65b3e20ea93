"""A row of the reward model keeps what later steps need, and nothing else alive."""

from __future__ import annotations

import torch

from pad_vllm.engines.reward_model.cached_row import KEPT_DIRECTIONS, CachedRow
from pad_vllm.engines.reward_model.kv_blocks import BlockPool


def test_a_row_keeps_the_last_directions_and_not_the_pass_they_come_from():
    row = CachedRow(BlockPool(100, 16), lambda *_: None)
    row.reserve(500)
    whole = torch.randn(500, 8)
    row.append(range(400), whole[:400].unbind())
    assert torch.equal(torch.stack(row.last_directions), whole[400 - KEPT_DIRECTIONS : 400])
    for number in range(3):
        row.append([number], whole[400 + number].unsqueeze(0).unbind())
    assert torch.equal(torch.stack(row.last_directions), whole[403 - KEPT_DIRECTIONS : 403])
    storages = {
        d_w.untyped_storage().data_ptr(): d_w.untyped_storage() for d_w in row.last_directions
    }
    assert sum(storage.nbytes() for storage in storages.values()) <= 2 * KEPT_DIRECTIONS * 8 * 4
