"""Adapters that come and go: which requests may name them, which dimensions they have, and until when."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

pytest.importorskip("vllm")

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.config import PADConfig
from pad_vllm.params import parse_guidance
from pad_vllm.serving.frontend import adapter_roots
from pad_vllm.serving.frontend.adapter_registry import AdapterRegistry
from pad_vllm.serving.start.served_adapters import load_served_adapters
from pad_vllm.serving.worker.runtime_adapter_updates import ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC
from pad_vllm.training.merged_base import merge_lora

BASE = tiny.config("llama")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("registry")
    base = tiny.checkpoint("llama", root / "base")
    other = tiny.checkpoint("qwen3", root / "other")

    def write(name, dimensions, model=base, fork_layer=4, **more):
        folder = root / name
        tiny.write_adapter(
            model, folder, fork_layer=fork_layer, std=0.1, dimensions=dimensions, **more
        )
        return str(folder)

    return {
        "own": write("own", ("warm", "brief")),
        "work": write("work", ("formal",)),
        "play": write("play", ("silly", "warm", "loud")),
        "forked": write("forked", ("warm",), fork_layer=2),
        "foreign": write("foreign", ("warm",), model=other),
        "learned": write("learned", ("warm",), prefixes=("warm",)),
        "higher": write("higher", ("warm",), prefixes=("warm",), prefix_fork_layer=2),
    }


def registry_of(pad, base=BASE, *, loras=False):
    """Of a server that starts with these settings."""
    return AdapterRegistry(pad, load_served_adapters(pad).config, base, loras=loras)


class Engine:
    """Notes what its two workers were called for; `fails` is what the second one says."""

    vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_size=1))

    def __init__(self):
        self.calls, self.fails, self.sleeps = [], None, False

    async def is_sleeping(self):
        return self.sleeps

    async def collective_rpc(self, method, args):
        self.calls.append((method, *args))
        return [None, self.fails if method == ADD_ADAPTER_RPC else None]


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def registry(folders):
    return registry_of(PADConfig(adapter=folders["own"]))


def load(registry, engine, name, folder, **more):
    asyncio.run(registry.load(engine, name, folder, **more))


def unload(registry, engine, name):
    asyncio.run(registry.unload(engine, name))


def test_a_loaded_adapter_can_be_named_and_its_weights_find_its_heads(registry, engine, folders):
    load(registry, engine, "work", folders["work"])
    load(registry, engine, "play", folders["play"])
    asked = {"pad_weights": "loud=1", "pad_adapter": "play"}
    assert parse_guidance(asked, registry.limits).weights == (0, 0, 0, 0, 0, 1)
    keys = [
        registry.limits.for_adapter(name).worker_arguments["pad_adapter"]
        for name in ("work", "play")
    ]
    assert [(*call[:3], call[3]) for call in engine.calls] == [
        (ADD_ADAPTER_RPC, keys[0], 2, folders["work"]),
        (ADD_ADAPTER_RPC, keys[1], 3, folders["play"]),
    ]
    with pytest.raises(ValueError, match="pad_adapter is 'x'; accepted: work and play|work, play"):
        parse_guidance({"pad_weights": "loud=1", "pad_adapter": "x"}, registry.limits)


def test_no_served_adapters_tensors_are_read_again(engine, folders, tmp_path):
    own, play = (str(shutil.copytree(folders[name], tmp_path / name)) for name in ("own", "play"))
    pad = PADConfig(
        adapter=own,
        adapters={"play": play},
        adapter_root=str(Path(folders["own"]).parent),
        instructions=True,
        fork_layer=1,
    )
    registry = registry_of(pad)
    for tensors in tmp_path.glob("*/*.safetensors"):
        tensors.unlink()
    load(registry, engine, "learned", folders["learned"])
    assert registry.has("learned")


def test_one_that_was_trained_with_a_lora_is_loaded_where_the_server_has_loras(
    registry, engine, folders, tmp_path
):
    base = Path(folders["own"]).parent / "base"
    merge_lora(base, tiny.write_lora(base, tmp_path / "sql"), tmp_path / "merged")
    under = Path(folders["own"]).parent / "under"
    tiny.write_adapter(tmp_path / "merged", under, fork_layer=4, std=0.1, dimensions=("terse",))
    with pytest.raises(ValueError, match="another backbone than"):
        load(registry, engine, "sql", str(under))
    with_loras = registry_of(PADConfig(adapter=folders["own"]), loras=True)
    load(with_loras, engine, "sql", str(under))
    assert with_loras.limits.merged_lora is None
    assert with_loras.limits.for_adapter("sql").merged_lora.lora == "sql"
    assert engine.calls[-1][-1] == load_adapter(under).digest  # as the workers read it


def test_a_removed_one_leaves_when_its_last_request_has_ended(registry, engine, folders):
    load(registry, engine, "work", folders["work"])
    load(registry, engine, "play", folders["play"])
    request = registry.limits.for_adapter("work")
    key = request.worker_key
    unload(registry, engine, "work")
    with pytest.raises(ValueError, match="pad_adapter"):
        parse_guidance({"pad_weights": "formal=1", "pad_adapter": "work"}, registry.limits)
    assert [call[0] for call in engine.calls] == [ADD_ADAPTER_RPC, ADD_ADAPTER_RPC]

    load(registry, engine, "work", folders["work"])  # beside the first, which still has a request
    again = registry.limits.for_adapter("work")
    assert again.worker_key != key
    assert again.first_dimension == 6
    del request, again
    unload(registry, engine, "work")
    assert [call[1:] for call in engine.calls if call[0] == REMOVE_ADAPTER_RPC] == [
        (key, 2, 1, 7),  # the third one's place is the last in use
        ("work#2", 6, 1, 6),
    ]
    load(registry, engine, "work", folders["work"])
    assert registry.limits.for_adapter("work").first_dimension == 2


def test_one_is_replaced_where_the_client_says_so_and_else_its_name_is_taken(
    registry, engine, folders
):
    load(registry, engine, "work", folders["work"])
    with pytest.raises(ValueError, match="'work' is served already; accepted: another name, or lo"):
        load(registry, engine, "work", folders["play"])
    load(registry, engine, "work", folders["play"], replacing=True)
    assert registry.limits.for_adapter("work").dimensions == ("silly", "warm", "loud")


def test_where_one_worker_fails_all_let_go(registry, engine, folders):
    engine.fails = "OSError: disk"
    with pytest.raises(ValueError, match="a worker could not load it: OSError: disk"):
        load(registry, engine, "work", folders["work"])
    assert [call[0] for call in engine.calls] == [ADD_ADAPTER_RPC, REMOVE_ADAPTER_RPC]
    assert not registry.has("work")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forked", "has a trunk"),
        ("foreign", "another backbone"),
        (
            "nothing",
            "lora_path is '/no/such/folder', and this server loads adapters from elsewhere",
        ),
    ],
)
def test_what_cannot_stand_beside_the_own_one_reaches_no_worker(
    registry, engine, folders, name, said
):
    with pytest.raises(ValueError, match=said):
        load(registry, engine, "more", folders.get(name, "/no/such/folder"))
    assert engine.calls == []


def test_a_client_learns_nothing_of_other_folders_and_no_path(registry, engine, folders, tmp_path):
    (tmp_path / "secret").mkdir()
    root = Path(folders["own"]).parent
    link, missing = root / "link", root / "missing"
    link.symlink_to(tmp_path)
    said = []
    loop = root / "loop"
    loop.symlink_to(loop)
    odd = (loop, "~nobody/x", "a\0b", "x" * 5000)
    for path in (tmp_path, tmp_path / "no", root, link, root / ".." / tmp_path.name, *odd):
        with pytest.raises(ValueError, match="loads adapters from elsewhere") as refusal:
            load(registry, engine, "more", str(path))
        said.append(str(refusal.value).partition(", and this server")[2])
        assert not registry_of(registry._pad, loras=True).handles_path(str(path))
    assert len(set(said)) == 1
    assert "secret" not in said[0]
    (missing).mkdir()
    with pytest.raises(ValueError, match="pad_config.json") as refusal:
        load(registry, engine, "more", str(missing))
    assert str(root) not in str(refusal.value).replace(str(missing), "")
    assert engine.calls == []


def test_files_that_are_links_to_elsewhere_are_not_read(registry, engine, folders, tmp_path):
    root = Path(folders["own"]).parent
    (tmp_path / "secret.json").write_text('{"password": 1}')
    linked = root / "linked"
    shutil.copytree(folders["work"], linked)
    (linked / "pad_config.json").unlink()
    (linked / "pad_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="pad_config.json is a link to elsewhere") as refusal:
        load(registry, engine, "more", str(linked))
    assert "password" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    learned = root / "learned-link"
    shutil.copytree(folders["learned"], learned)
    shutil.move(learned / "prefixes" / "warm", tmp_path / "warm")
    (learned / "prefixes" / "warm").symlink_to(tmp_path / "warm")
    with pytest.raises(ValueError, match="is a link to elsewhere"):
        load(registry, engine, "more", str(learned))
    assert engine.calls == []


def test_links_within_the_allowed_folders_are_followed(registry, engine, folders):
    """The hub's cache has every file of a snapshot as one."""
    blobs = Path(folders["own"]).parent / "blobs"
    snapshot = Path(folders["own"]).parent / "snapshot"
    shutil.copytree(folders["work"], blobs)
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    load(registry, engine, "more", str(snapshot))
    assert registry.has("more")


def test_a_whole_disk_is_not_allowed_by_where_the_own_adapter_lies():
    roots = adapter_roots.AdapterRoots(PADConfig(adapter="/adapter"))
    assert not roots.allowed_folder("/etc/ssl")
    assert adapter_roots.AdapterRoots(PADConfig(adapter="/a/b")).allowed_folder("/a/c")


def test_an_allowed_folder_may_be_named_and_what_is_too_large_is_not_read(
    engine, folders, tmp_path, monkeypatch
):
    pad = PADConfig(adapter=folders["own"], adapter_root=str(tmp_path))
    registry = registry_of(pad)
    with pytest.raises(ValueError, match="loads adapters from elsewhere"):
        load(registry, engine, "work", folders["work"])
    shutil.copytree(folders["work"], tmp_path / "work")
    monkeypatch.setattr(adapter_roots, "MAX_ADAPTER_BYTES", 100)
    with pytest.raises(ValueError, match="bytes; accepted: 100 at most"):
        load(registry, engine, "work", str(tmp_path / "work"))
    monkeypatch.undo()
    load(registry, engine, "work", str(tmp_path / "work"))
    assert registry.has("work")


def test_nothing_is_loaded_into_a_server_that_sleeps(registry, engine, folders):
    engine.sleeps = True
    with pytest.raises(ValueError, match="sleeps; accepted: an awake one"):
        load(registry, engine, "work", folders["work"])


def test_a_name_of_no_adapter_is_refused(registry, engine):
    with pytest.raises(ValueError, match="no adapter 'work'"):
        unload(registry, engine, "work")


def test_beside_vllms_own_loras_a_folder_says_whose_it_is(folders, tmp_path):
    alone, beside = (
        registry_of(PADConfig(adapter=folders["own"]), loras=on) for on in (False, True)
    )
    assert alone.handles_path(str(tmp_path))
    assert beside.handles_path(folders["work"])
    assert not beside.handles_path(str(tmp_path))


def test_a_loaded_adapters_learned_prefixes_can_be_named(engine, folders):
    pad = PADConfig(adapter=folders["own"], instructions=True, fork_layer=1)
    registry = registry_of(pad)
    load(registry, engine, "learned", folders["learned"])
    prefixes = registry.limits.for_adapter("learned").prefixes
    assert {name: one.num_tokens for name, one in prefixes.items()} == {"warm": 32}
    with pytest.raises(ValueError, match="learned for fork layer 2, and this server's is 1"):
        load(registry, engine, "higher", folders["higher"])


def test_prefixes_for_another_number_of_heads_are_refused(engine, folders):
    base = SimpleNamespace(num_key_value_heads=4, head_dim=32)
    base.get_text_config = lambda: base
    registry = registry_of(PADConfig(adapter=folders["own"]), base)
    with pytest.raises(ValueError, match="2 KV heads of width 32, and the base has 4"):
        load(registry, engine, "learned", folders["learned"])


def test_the_fork_is_that_of_all_adapters_the_server_started_with(engine, folders):
    others = {"higher": folders["higher"]}
    pad = PADConfig(adapter=folders["own"], adapters=others, instructions=True)
    registry = registry_of(pad)
    load(registry, engine, "again", folders["higher"])
    with pytest.raises(ValueError, match="learned for fork layer 1, and this server's is 2"):
        load(registry, engine, "learned", folders["learned"])
