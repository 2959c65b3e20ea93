"""The fingerprint of weights: what it must not see, what it must notice, and broken files."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pad_vllm.adapter.backbone.weight_fingerprint import (
    SAMPLED_BYTES,
    SAMPLED_CHUNKS,
    _sampled_ranges,
    fingerprint,
    local_checkpoint,
)

PINNED = "sha256:a366c4facc68021b735edaeacb6db3d8625a304c9203b44ab997bd1fc385dc92"


def tensors() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(300, 16, generator=source),  # 19 KB: sampled
        "small": torch.randn(5, generator=source),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }


def checkpoint(folder: Path, *shards: dict[str, torch.Tensor], index: bool = False) -> Path:
    folder.mkdir()
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    if index:
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


@pytest.fixture
def original(tmp_path):
    return fingerprint(checkpoint(tmp_path / "original", tensors()))


def test_it_is_sha256_and_the_same_twice(tmp_path, original):
    assert original == fingerprint(tmp_path / "original")
    assert original.startswith("sha256:")
    assert len(original) == len("sha256:") + 64


def test_its_value_is_pinned_because_adapters_on_disk_hold_it(tmp_path):
    weights = {"a": torch.arange(4096, dtype=torch.int32), "b": torch.ones(2, 3)}
    assert fingerprint(checkpoint(tmp_path / "pinned", weights)) == PINNED


def test_sharding_order_metadata_and_file_names_are_not_seen(tmp_path, original):
    whole = tensors()
    halves = [
        {name: whole[name] for name in pair} for pair in (("small", "empty"), ("scalar", "embed"))
    ]
    assert fingerprint(checkpoint(tmp_path / "sharded", *halves)) == original
    assert fingerprint(checkpoint(tmp_path / "indexed", *halves, index=True)) == original
    single = tmp_path / "single"
    single.mkdir()
    backwards = dict(reversed(whole.items()))
    save_file(backwards, single / "model.safetensors", metadata={"format": "pt", "by": "someone"})
    assert fingerprint(single) == original


def test_files_that_vllm_would_not_load_are_not_seen(tmp_path, original):
    folder = checkpoint(tmp_path / "indexed", tensors(), index=True)
    save_file({"other": torch.ones(2)}, folder / "consolidated.safetensors")
    assert fingerprint(folder) == original
    single = tmp_path / "single"
    single.mkdir()
    save_file(tensors(), single / "model.safetensors")
    save_file({"other": torch.ones(2)}, single / "adapter_model.safetensors")
    assert fingerprint(single) == original


@pytest.mark.parametrize("row", [0, -1])
def test_a_changed_first_or_last_value_is_noticed(tmp_path, original, row):
    changed = tensors()
    changed["embed"][row, row] += 1
    assert fingerprint(checkpoint(tmp_path / "changed", changed)) != original


def test_any_change_to_a_small_tensor_is_noticed(tmp_path, original):
    for position in range(5):
        changed = tensors()
        changed["small"][position] += 1
        assert fingerprint(checkpoint(tmp_path / f"changed{position}", changed)) != original


def test_a_finetune_that_moves_every_value_is_noticed(tmp_path, original):
    changed = tensors()
    changed["embed"] *= 1.001
    assert fingerprint(checkpoint(tmp_path / "tuned", changed)) != original


def test_a_renamed_missing_or_extra_tensor_is_noticed(tmp_path, original):
    renamed = tensors()
    renamed["smaller"] = renamed.pop("small")
    less = tensors()
    del less["empty"]
    more = tensors() | {"more": torch.ones(1)}
    for number, changed in enumerate((renamed, less, more)):
        assert fingerprint(checkpoint(tmp_path / str(number), changed)) != original


def test_another_dtype_or_shape_over_the_same_bytes_is_noticed(tmp_path, original):
    reshaped, retyped = tensors(), tensors()
    reshaped["embed"] = reshaped["embed"].reshape(16, 300)
    retyped["embed"] = retyped["embed"].view(torch.int32)
    for number, changed in enumerate((reshaped, retyped)):
        assert fingerprint(checkpoint(tmp_path / str(number), changed)) != original


@given(st.integers(0, 10**12))
def test_samples_stay_inside_the_tensor_reach_both_ends_and_are_bounded(size):
    chunks = _sampled_ranges(size)
    assert chunks[0][0] == 0
    assert sum(chunks[-1]) == size
    assert sum(length for _, length in chunks) == min(size, SAMPLED_BYTES)
    assert len(chunks) <= SAMPLED_CHUNKS
    ends = [start + length for start, length in chunks]
    assert all(end <= start for end, (start, _) in zip(ends, chunks[1:], strict=False))


def test_a_folder_without_safetensors_says_what_it_has_and_how_to_convert(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no \*.safetensors.*pytorch_model.bin.*save_pretrained"):
        fingerprint(tmp_path)


def test_a_shard_that_the_index_lists_and_is_missing_is_named(tmp_path):
    folder = checkpoint(tmp_path / "c", {"a": torch.ones(2)}, {"b": torch.ones(2)}, index=True)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not there: model-00002-of-00002.*Finish the download"):
        fingerprint(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": []}}']
)
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="weight_map"):
        fingerprint(tmp_path)


def test_one_tensor_in_two_files_is_refused_naming_both(tmp_path):
    folder = checkpoint(tmp_path / "twice", {"a": torch.ones(2)}, {"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'a' twice.*00001.*00002"):
        fingerprint(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_file_cut_short_is_refused(tmp_path, keep):
    file = checkpoint(tmp_path / "cut", tensors()) / "model-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"cut short.*Download or copy"):
        fingerprint(tmp_path / "cut")


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        header(b"not json"),
        header(b"[]"),
        header(b"\xff\xff"),
        header(b'{"a": 3}'),
        header(b'{"a": {"dtype": "F32", "shape": [1]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"1234"),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 0]}}'),
        header(b'{"a": {"dtype": 32, "shape": [1], "data_offsets": [0, 4]}}', b"1234"),
        pytest.param(header(b'{"a":' * 100_000), id="nested"),
    ],
)
def test_an_invalid_header_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors has an invalid safetensors header"):
        fingerprint(tmp_path)


def test_a_checkpoint_without_tensors_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header(b"{}"))
    with pytest.raises(ValueError, match="hold no tensors"):
        fingerprint(tmp_path)


def test_a_folder_is_its_own_local_checkpoint(tmp_path):
    assert local_checkpoint(str(tmp_path)) == tmp_path


def test_a_hub_name_is_found_in_the_cache_though_the_snapshot_lacks_other_files(tmp_path):
    stored = tmp_path / "models--org--name"
    snapshot = stored / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("a" * 40)
    assert local_checkpoint("org/name", cache_dir=str(tmp_path)) == snapshot
    assert local_checkpoint("org/name", "a" * 40, str(tmp_path)) == snapshot
    assert local_checkpoint("org/name", "b" * 40, str(tmp_path)) is None


@pytest.mark.parametrize("name", ["org/absent", "/no/such/folder", "not a name", "a/b/c", ""])
def test_what_is_not_on_this_machine_is_none(tmp_path, name):
    assert local_checkpoint(name, cache_dir=str(tmp_path)) is None
