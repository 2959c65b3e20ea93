"""LoRA on layers that several ranks share: together they make what one layer makes alone."""

from __future__ import annotations

import pytest
import torch
from threaded_ranks import ThreadedRanks
from torch import nn

pytest.importorskip("vllm")

from pad_vllm.engines.shared import lora_shards

H, R, ROWS = 24, 4, 6
SCALING = 0.5
CPU = torch.device("cpu")


class ParallelLayer(nn.Module):
    """As much of vLLM's column- and row-parallel layers as LoRA touches."""

    params_dtype = torch.float64

    def __init__(self, weight, bias, rank, ranks, widths, reduce, world):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.tp_rank, self.tp_size = rank, ranks
        self.output_partition_sizes = widths
        self.output_size, self.input_size_per_partition = weight.shape
        self.input_size = weight.shape[1]
        self.reduce_results = reduce
        self.world = world

    def forward(self, x):
        output = nn.functional.linear(x, self.weight, self.bias)
        if self.reduce_results and self.tp_size > 1:
            output = self.world.sum_over_ranks(output)
        return output, None


@pytest.fixture
def numbers():
    torch.manual_seed(0)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64)


def whole(x, weight, bias, pairs):
    """The layer on one rank: the delta on the second half of the rows."""
    output = nn.functional.linear(x, weight, bias)
    half = len(x) // 2
    delta = torch.cat([x[half:] @ a.T @ b.T * SCALING for a, b in pairs], dim=-1)
    return torch.cat((output[:half], output[half:] + delta))


# heads of 2 numbers each: queries, and keys of fewer heads than ranks
@pytest.mark.parametrize(("ranks", "keys"), [(1, 2), (2, 2), (2, 1), (4, 2), (4, 1)])
def test_packed_queries_and_keys_are_split_as_vllm_splits_them(numbers, ranks, keys):
    size, queries = 2, 8
    sizes = [queries * size, keys * size, keys * size]
    weights = [numbers(n, H) for n in sizes]
    biases = [numbers(n) for n in sizes]
    pairs = [(numbers(R, H), numbers(n, R)) for n in sizes]
    x = numbers(ROWS, H)
    expected = whole(x, torch.cat(weights), torch.cat(biases), pairs).split(sizes, dim=-1)
    replicas = max(ranks // keys, 1)

    def ranges(rank):
        """(first, width) of each part on a rank."""
        width = max(keys // ranks, 1) * size
        other = (rank // replicas * width, width)
        return [(rank * sizes[0] // ranks, sizes[0] // ranks), other, other]

    for rank in range(ranks):
        cut = ranges(rank)
        mine = [
            torch.cat([part.narrow(0, *of_rank) for part, of_rank in zip(parts, cut, strict=True)])
            for parts in (weights, biases)
        ]
        layer = ParallelLayer(*mine, rank, ranks, [width for _, width in cut], False, None)
        lora_shards.add_lora_shard(layer, pairs, SCALING, CPU)
        found = layer(x)[0].split([width for _, width in cut], dim=-1)
        for got, part, of_rank in zip(found, expected, cut, strict=True):
            torch.testing.assert_close(got, part.narrow(-1, *of_rank))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("reduce", [True, False])
def test_a_layer_that_splits_its_inputs_is_summed_once_with_its_lora(
    numbers, monkeypatch, ranks, reduce
):
    weight, bias, x = numbers(10, H), numbers(10), numbers(ROWS, H)
    pair = numbers(R, H), numbers(10, R)
    world = ThreadedRanks(ranks)
    monkeypatch.setattr(lora_shards, "sum_over_ranks", world.sum_over_ranks)
    width = H // ranks

    def run(rank):
        mine = slice(rank * width, (rank + 1) * width)
        once = bias if rank == 0 else None
        layer = ParallelLayer(weight[:, mine], once, rank, ranks, [10], reduce, world)
        lora_shards.add_lora_shard(layer, [pair], SCALING, CPU)
        return layer(x[:, mine])[0]

    outputs = world.run(run)
    assert world.sums == (reduce and ranks > 1)
    result = outputs[0] if reduce else sum(outputs)
    torch.testing.assert_close(result, whole(x, weight, bias, [pair]))


def test_parts_without_lora_stay_as_they_are(numbers):
    weight, bias, x = numbers(8, H), numbers(8), numbers(ROWS, H)
    layer = ParallelLayer(weight[:4], bias[:4], 0, 2, [2, 2], False, None)
    pair = numbers(R, H), numbers(4, R)
    lora_shards.add_lora_shard(layer, [None, pair], SCALING, CPU)
    half = ROWS // 2
    plain = nn.functional.linear(x, weight[:4], bias[:4])
    expected = plain[half:, 2:] + x[half:] @ pair[0].T @ pair[1][:2].T * SCALING
    found = layer(x)[0]
    torch.testing.assert_close(found[:, :2], plain[:, :2])
    torch.testing.assert_close(found[half:, 2:], expected)


def test_a_lora_that_is_cut_in_another_way_is_refused_with_both_numbers(numbers):
    layer = ParallelLayer(numbers(4, H), numbers(4), 0, 2, [4], False, None)
    with pytest.raises(ValueError, match="B has 12 rows where the layer has 4 on each of 2 ranks"):
        lora_shards.add_lora_shard(layer, [(numbers(R, H), numbers(12, R))], SCALING, CPU)
    with pytest.raises(ValueError, match="A has 25 columns where the layer has 24 on each"):
        lora_shards.add_lora_shard(layer, [(numbers(R, H + 1), numbers(8, R))], SCALING, CPU)
    layer.gather_output = True
    with pytest.raises(ValueError, match="ParallelLayer gathers or splits its rows itself"):
        lora_shards.add_lora_shard(layer, [(numbers(R, H), numbers(8, R))], SCALING, CPU)
