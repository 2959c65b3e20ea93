"""What a backend is told of a batch whose rows read reserved blocks in front of their own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata

from pad_vllm.vllm_api.prefixed_attention import prefixed_backend

BLOCK, WIDTH, NUM_BLOCKS, NUM_RESERVED, MAX_PREFIX, MAX_ROWS = 32, 6, 40, 9, 3, 8
FIRST_RESERVED = NUM_BLOCKS - NUM_RESERVED


class Builder:
    """Returns what it is given."""

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        self.block_size, self.device = kv_cache_spec.block_size, device

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        return common_prefix_len, common_attn_metadata, fast_build


class Backend:
    @staticmethod
    def get_name():
        return "PLAIN"

    @staticmethod
    def get_builder_cls():
        return Builder


class Table:
    """The prefixes by batch slot."""

    block_size, num_reserved_blocks, max_prefix_blocks = BLOCK, NUM_RESERVED, MAX_PREFIX

    def __init__(self, **by_slot):
        self.by_slot, self.asked = {int(slot[1:]): one for slot, one in by_slot.items()}, []

    def prefix_blocks(self, batch_slots):
        self.asked.append(list(batch_slots))
        if not any(slot in self.by_slot for slot in batch_slots):
            return None
        blocks = np.full((len(batch_slots), MAX_PREFIX), -1, np.int32)
        for row, slot in enumerate(batch_slots):
            own = self.by_slot.get(slot, ())
            blocks[row, : len(own)] = own
        return blocks


def make(table, kernel_size=BLOCK, device="cpu"):
    """A builder of a layer that reads this table."""
    shape = (NUM_BLOCKS * BLOCK // kernel_size, 2, kernel_size, 1, 4)
    layer = SimpleNamespace(pad_prefix_table=table, kv_cache=torch.empty(shape, device=device))
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(static_forward_context={"reward": layer}),
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_ROWS),
    )
    spec = SimpleNamespace(block_size=kernel_size)
    cls = prefixed_backend(Backend).get_builder_cls()
    return cls(spec, ["reward"], config, torch.device(device))


def batch(*seq_lens, kernel_size=BLOCK, req_idx=None, bound=True, device="cpu", seed=0):
    """The metadata of rows of these lengths, the last token of each to be computed."""
    width = WIDTH * BLOCK // kernel_size
    drawn = torch.Generator().manual_seed(seed)
    own = torch.randint(1, 60, (len(seq_lens), width), dtype=torch.int32, generator=drawn)
    starts = torch.arange(len(seq_lens) + 1, dtype=torch.int32)
    lengths = torch.tensor(seq_lens, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lengths.to(device),
        num_reqs=len(seq_lens),
        num_actual_tokens=len(seq_lens),
        max_query_len=1,
        max_seq_len=max(seq_lens),
        block_table_tensor=own.to(device),
        slot_mapping=torch.arange(100, 100 + len(seq_lens)).to(device),
        seq_lens_cpu_upper_bound=lengths.clone() if bound else None,
        req_idx=None if req_idx is None else np.array(req_idx),
    )


def told(builder, common):
    prefix_len, metadata, _ = builder.build(0, common)
    assert prefix_len == 0
    return metadata


def blocks_read(metadata, row, kernel_size=BLOCK):
    """The kernel blocks that a row's sequence is in."""
    length = int(metadata.seq_lens[row])
    return metadata.block_table_tensor[row, : -(-length // kernel_size)].tolist()


def own_blocks(common, row, kernel_size=BLOCK):
    return blocks_read(common, row, kernel_size)


def reserved(*blocks):
    return [FIRST_RESERVED + block for block in blocks]


def test_a_row_reads_its_prefix_and_then_its_own_blocks():
    builder, common = make(Table(_0=(3, 4), _2=(0,), _3=(6, 7, 8))), batch(40, 33, 1, 192)
    found = told(builder, common)
    assert found.seq_lens.tolist() == [40 + 64, 33, 1 + 32, 192 + 96]
    assert blocks_read(found, 0) == reserved(3, 4) + own_blocks(common, 0)
    assert blocks_read(found, 1) == own_blocks(common, 1)
    assert blocks_read(found, 2) == reserved(0) + own_blocks(common, 2)
    assert blocks_read(found, 3) == reserved(6, 7, 8) + common.block_table_tensor[3].tolist()
    assert found.block_table_tensor.shape == (4, WIDTH + MAX_PREFIX)
    assert found.block_table_tensor.dtype == found.seq_lens.dtype == torch.int32


def test_lengths_on_the_host_follow():
    found = told(make(Table(_0=(3, 4), _2=(0,))), batch(40, 33, 1))
    assert found.seq_lens_cpu_upper_bound.tolist() == [104, 33, 33]
    assert found.max_seq_len >= int(found.seq_lens.max())
    assert found.max_seq_len == 40 + MAX_PREFIX * BLOCK
    assert told(make(Table(_0=(3,))), batch(40, bound=False)).seq_lens_cpu_upper_bound is None


def test_what_is_computed_before_a_row_counts_its_prefix():
    common = batch(40, 33)
    assert common.compute_num_computed_tokens().tolist() == [39, 32]  # and is kept there
    found = told(make(Table(_0=(3, 4))), common)
    assert found.compute_num_computed_tokens().tolist() == [39 + 64, 32]


def test_where_keys_are_written_and_what_is_asked_stays():
    common = batch(40, 33)
    found = told(make(Table(_1=(3,))), common)
    for name in ("slot_mapping", "query_start_loc", "query_start_loc_cpu"):
        assert getattr(found, name) is getattr(common, name)
    assert (found.num_reqs, found.num_actual_tokens, found.max_query_len) == (2, 2, 1)


def test_the_batchs_own_metadata_is_not_changed():
    """Plain layers of the same model are built from it too."""
    common, copy = batch(40, 33), batch(40, 33)
    told(make(Table(_0=(3, 4))), common)
    for name in ("block_table_tensor", "seq_lens", "seq_lens_cpu_upper_bound"):
        assert torch.equal(getattr(common, name), getattr(copy, name))
    assert common.max_seq_len == copy.max_seq_len


@pytest.mark.parametrize("kernel_size", [8, 16])
def test_kernels_may_have_smaller_blocks_than_the_manager(kernel_size):
    ratio = BLOCK // kernel_size
    builder = make(Table(_0=(2, 5), _1=(0, 1, 8)), kernel_size)
    common = batch(50, 20, 90, kernel_size=kernel_size)
    found = told(builder, common)

    def parts(*blocks):
        first = FIRST_RESERVED * ratio
        return [first + block * ratio + part for block in blocks for part in range(ratio)]

    assert found.seq_lens.tolist() == [50 + 64, 20 + 96, 90]
    assert found.seq_lens_cpu_upper_bound.tolist() == found.seq_lens.tolist()
    assert found.max_seq_len == 90 + 96
    for row, prefix in enumerate((parts(2, 5), parts(0, 1, 8), [])):
        own = own_blocks(common, row, kernel_size)
        assert blocks_read(found, row, kernel_size) == prefix + own
    assert max(parts(8)) == len(builder._layer.kv_cache) - 1


def test_on_v1_a_row_is_a_slot_and_v2_says_which():
    table = Table(_7=(1,), _1=(2, 3))
    common = batch(40, 33, 64, req_idx=[7, 0, 1])
    found = told(make(table), common)
    assert table.asked == [[7, 0, 1]]
    assert all(type(slot) is int for slot in table.asked[0])
    assert found.seq_lens.tolist() == [72, 33, 128]
    assert blocks_read(found, 0) == reserved(1) + own_blocks(common, 0)
    assert blocks_read(found, 2) == reserved(2, 3) + own_blocks(common, 2)
    other = Table()
    told(make(other), batch(40, 33, 64))
    assert other.asked == [[0, 1, 2]]


def test_rows_that_only_pad_a_graph_stay_empty():
    common = batch(40, 33, 0, 0, req_idx=[7, 1])  # V2: fewer slots than rows
    found = told(make(Table(_7=(1,), _0=(4,), _2=(5,))), common)
    assert found.seq_lens.tolist() == [72, 33, 0, 0]
    assert found.seq_lens_cpu_upper_bound.tolist() == [72, 33, 0, 0]
    padded = told(make(Table(_0=(1,))), batch(40, 33, 0, 0))  # V1: no request in these slots
    assert padded.seq_lens.tolist() == [72, 33, 0, 0]


def test_without_prefixes_nothing_changes_on_a_cpu():
    common = batch(40, 33)
    assert told(make(Table(_5=(1,))), common) is common


def test_on_another_device_the_shapes_are_the_same_with_and_without_prefixes():
    for table in (Table(), Table(_0=(1, 2))):
        common = batch(40, 33, device="meta")
        found = told(make(table, device="meta"), common)
        assert found is not common
        assert found.block_table_tensor.shape == (2, WIDTH + MAX_PREFIX)
        assert found.max_seq_len == 40 + MAX_PREFIX * BLOCK
        expected = [40 + 64 * bool(table.by_slot), 33]
        assert found.seq_lens_cpu_upper_bound.tolist() == expected


def test_tensors_keep_their_addresses_from_batch_to_batch():
    builder, addresses = make(Table(_0=(3, 4), _1=(0,))), set()
    for lengths in ((40, 33), (1,), (5,) * MAX_ROWS, (64, 1, 2)):
        found = told(builder, batch(*lengths))
        addresses.add((found.block_table_tensor.data_ptr(), found.seq_lens.data_ptr()))
        assert len(found.block_table_tensor) == len(found.seq_lens) == len(lengths)
    assert len(addresses) == 1


def test_nothing_of_an_earlier_batch_is_left():
    builder = make(Table(_0=(3, 4, 5), _1=(0,)))
    told(builder, batch(190, 190, 190, seed=1))
    common = batch(33, 64, req_idx=[9, 1])
    found = told(builder, common)
    assert found.seq_lens.tolist() == [33, 96]
    assert blocks_read(found, 0) == own_blocks(common, 0)
    assert blocks_read(found, 1) == reserved(0) + own_blocks(common, 1)


def test_each_layer_group_has_tensors_of_its_own():
    common, table = batch(40, 33), Table(_0=(3,))
    first, second = (told(make(table), common) for _ in range(2))
    assert first.block_table_tensor.data_ptr() != second.block_table_tensor.data_ptr()


def test_other_arguments_are_passed_on():
    builder, common = make(Table(_0=(3,))), batch(40)
    assert builder.build(0, common, True)[2] is True
    assert builder.build(common_prefix_len=0, common_attn_metadata=common, fast_build=True)[2]
    assert (builder.block_size, builder.device) == (BLOCK, torch.device("cpu"))


def test_a_backend_is_extended_once_and_is_otherwise_itself():
    extended = prefixed_backend(Backend)
    assert prefixed_backend(Backend) is extended
    assert issubclass(extended, Backend)
    assert extended.__base__ is Backend
    assert extended.get_name() == "PLAIN"
    assert issubclass(extended.get_builder_cls(), Builder)
    assert extended.get_builder_cls() is extended.get_builder_cls()
    assert Backend.get_builder_cls() is Builder


def test_vllms_backend_of_cpus_can_be_extended():
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    builder = prefixed_backend(CPUAttentionBackend).get_builder_cls()
    assert issubclass(builder, AttentionMetadataBuilder)
    assert issubclass(builder, CPUAttentionBackend.get_builder_cls())
