"""The adapter on disk: PEFT opens it, it comes back bit for bit, every broken one is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from benchmarks.common.random_adapter import random_adapter
from pad_vllm.adapter import adapter_folder as adapter_module
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.peft_lora import LoRA

H, LAYERS, FORK, RANK, HEAD_RANK = 32, 4, 2, 3, 2
BACKBONE = Backbone("org/tiny", ("LlamaForCausalLM",), H, LAYERS, 64, "sha256:" + "0" * 64)
SHAPES = {
    "q_proj": (32, H),
    "k_proj": (16, H),
    "v_proj": (16, H),
    "o_proj": (H, 32),
    "gate_proj": (48, H),
    "up_proj": (48, H),
    "down_proj": (H, 48),
}
LLAMA = {
    "hidden_size": H,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
Q2 = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"
Q2B = Q2.replace("lora_A", "lora_B")


def make(
    std: float = 0.1, seed: int = 0, shapes=None, fork=FORK, constants=False, gates=False
) -> Adapter:
    return random_adapter(
        BACKBONE,
        fork,
        ("helpful", "humor"),
        RANK,
        HEAD_RANK,
        shapes=shapes or SHAPES,
        std=std,
        seed=seed,
        constants=constants,
        gates=gates,
    )


@pytest.fixture
def folder(tmp_path):
    save_adapter(make(), tmp_path / "adapter", "# A card\n")
    return tmp_path / "adapter"


def refusal(folder) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def edit(file, change) -> None:
    """Rewrites a safetensors or JSON file through `change`, which alters its content in place."""
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    else:
        content = load_file(file)
        change(content)
        save_file(content, file)


def same(one: Adapter, other: Adapter) -> bool:
    return (
        one.config == other.config
        and one.lora.weights.keys() == other.lora.weights.keys()
        and all(
            torch.equal(mine, theirs) if mine is not None else theirs is None
            for mine, theirs in zip(one.heads, other.heads, strict=True)
        )
        and all(
            torch.equal(mine, theirs)
            for key, pair in one.lora.weights.items()
            for mine, theirs in zip(pair, other.lora.weights[key], strict=True)
        )
    )


def test_an_adapter_comes_back_bit_for_bit(folder):
    loaded = load_adapter(folder)
    assert same(loaded, make())
    assert loaded.path == folder
    assert (loaded.lora.rank, loaded.lora.alpha, loaded.lora.scaling) == (RANK, float(RANK), 1.0)


def test_the_folder_holds_the_five_files_and_the_card(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(adapter_module.ADAPTER_FILES)
    assert (folder / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_accepted_dtype_on_disk_is_float32_in_memory(folder, dtype):
    for name in ("adapter_model.safetensors", "preference_heads.safetensors"):
        edit(folder / name, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    loaded = load_adapter(folder)
    found = [
        loaded.head_A,
        loaded.head_B,
        *(t for pair in loaded.lora.weights.values() for t in pair),
    ]
    assert {tensor.dtype for tensor in found} == {torch.float32}
    assert torch.equal(loaded.head_A, make().head_A.to(dtype).float())


def test_tensors_outlive_the_files_they_came_from(folder):
    loaded = load_adapter(folder)
    for name in ("adapter_model.safetensors", "preference_heads.safetensors"):
        (folder / name).write_bytes(b"\0" * (folder / name).stat().st_size)
    assert same(loaded, make())


def test_peft_opens_it_and_computes_what_the_weights_say(folder, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    base.save_pretrained(tmp_path / "base")
    ids = torch.arange(12).reshape(2, 6)
    by_hand = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    edited = dataclasses.replace(load_adapter(folder).lora, alpha=RANK * 4.0, scaling=4.0)
    save_adapter(dataclasses.replace(make(), lora=edited), folder, "")
    with torch.no_grad():
        for (layer, module), (a, b) in edited.weights.items():
            decoder = by_hand.model.layers[layer]
            parent = decoder.self_attn if hasattr(decoder.self_attn, module) else decoder.mlp
            getattr(parent, module).weight += edited.scaling * b @ a
        plain = base(ids).logits
        opened = peft.PeftModel.from_pretrained(base, folder)
        assert opened.peft_config["default"].layers_to_transform == [2, 3]
        guided = opened(ids).logits
    assert not torch.allclose(plain, guided, atol=1e-3)
    torch.testing.assert_close(guided, by_hand(ids).logits, atol=1e-5, rtol=1e-5)


def test_what_peft_writes_is_read(tmp_path, folder):
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    lora = peft.LoraConfig(
        r=5, lora_alpha=10, use_rslora=True, target_modules=["q_proj", "down_proj"],
        layers_to_transform=[2, 3], init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    model = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**LLAMA)), lora)
    model.save_pretrained(tmp_path / "peft")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((tmp_path / "peft" / name).read_bytes())
    loaded = load_adapter(folder).lora
    assert {module for _, module in loaded.weights} == {"q_proj", "down_proj"}
    theirs = model.base_model.model.model.layers[2].self_attn.q_proj
    assert loaded.scaling == pytest.approx(theirs.scaling["default"])
    assert loaded.alpha == pytest.approx(loaded.scaling * 5)
    assert torch.equal(loaded.weights[2, "q_proj"][1], theirs.lora_B["default"].weight)


def test_the_digest_survives_the_disk_and_sees_every_part(folder):
    ours = make()
    assert load_adapter(folder).digest == ours.digest
    others = [
        make(seed=1),
        make(std=0.0),
        dataclasses.replace(ours, head_B=ours.head_B + 1),
        dataclasses.replace(ours, config=dataclasses.replace(ours.config, beta=2.0)),
        dataclasses.replace(ours, lora=dataclasses.replace(ours.lora, alpha=6.0, scaling=2.0)),
    ]
    assert len({other.digest for other in (ours, *others)}) == 6
    assert int(ours.digest, 16) >= 0


def test_a_random_adapter_is_its_seeds_and_std_zero_is_all_zero():
    assert same(make(), make())
    assert not same(make(), make(seed=1))
    zero = make(std=0.0)
    assert all(not t.any() for pair in zero.lora.weights.values() for t in pair)
    assert not zero.head_A.any()


def test_saving_onto_an_adapter_replaces_it_whole(folder):
    other = make(seed=7, shapes={"q_proj": (32, H)})
    save_adapter(other, folder, "second")
    assert same(load_adapter(folder), other)
    assert (folder / "README.md").read_text() == "second"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_saving_makes_the_folders_above_and_takes_an_empty_one(tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "a" / "b", tmp_path / "empty"):
        save_adapter(make(), target, "")
        assert same(load_adapter(target), make())


def test_saving_never_replaces_what_is_not_an_adapters(tmp_path, folder):
    (folder / "notes.txt").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for target, named in ((folder, "notes.txt"), (file, "file")):
        with pytest.raises(AdapterError, match=named):
            save_adapter(make(seed=1), target, "")
    assert same(load_adapter(folder), make())
    assert file.read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_adapter_and_no_litter(folder, monkeypatch):
    monkeypatch.setattr(adapter_module, "save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_adapter(make(seed=1), folder, "")
    assert same(load_adapter(folder), make())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_tensors_that_share_memory_or_need_gradients_are_saved(tmp_path):
    ours = make()
    shared = torch.zeros(1, requires_grad=True).expand(2, HEAD_RANK, H)
    expanded = dataclasses.replace(ours, head_A=shared, head_B=shared.transpose(1, 2))
    save_adapter(expanded, tmp_path / "adapter", "")
    assert load_adapter(tmp_path / "adapter").digest == expanded.digest


@pytest.mark.parametrize("name", ["org/adapter", "/no/such/folder"])
def test_an_adapter_that_is_not_there_is_refused(name):
    with pytest.raises(AdapterError, match="local folder"):
        load_adapter(name)


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "pad_config.json",
        "preference_heads.safetensors",
    ],
)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert name in refusal(folder)


def test_the_card_may_be_missing(folder):
    (folder / "README.md").unlink()
    load_adapter(folder)


def test_a_pickled_lora_is_never_read(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refusal(folder)
    assert "adapter_model.bin is not read" in message
    assert "safe_serialization=True" in message


def test_another_format_version_is_refused(folder):
    edit(folder / "pad_config.json", lambda config: config.update(format_version=9))
    assert "format_version is 9; this pad_vllm reads 1 to 4. Upgrade" in refusal(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "pad_config.json"])
def test_invalid_json_is_refused(folder, name):
    (folder / name).write_text('{"r": ')
    message = refusal(folder)
    assert name in message
    assert "not valid JSON" in message


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "preference_heads.safetensors"])
@pytest.mark.parametrize("keep", [0, 6, 30, -1])
def test_a_truncated_tensor_file_is_refused(folder, name, keep):
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    message = refusal(folder)
    assert name in message
    assert "cut short" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("peft_type", "LOHA"),
        ("peft_type", None),
        ("bias", "all"),
        ("use_dora", True),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("target_parameters", ["w"]),
        ("r", 0),
        ("r", "3"),
        ("r", True),
        ("r", 10**400),
        ("lora_alpha", None),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("layers_to_transform", None),
        ("layers_to_transform", [3]),
        ("layers_to_transform", [1, 2, 3]),
        ("layers_to_transform", 3),
        ("layers_to_transform", [2, "3"]),
        ("target_modules", ["q_proj"]),
    ],
)
def test_a_peft_setting_that_is_not_served_is_refused(folder, name, value):
    edit(folder / "adapter_config.json", lambda config: config.update({name: value}))
    message = refusal(folder)
    assert f"adapter_config.json: {name} is " in message
    assert "accepted: " in message


@pytest.mark.parametrize(("name", "value"), [("target_modules", "all-linear"), ("use_dora", False)])
def test_peft_settings_that_change_nothing_are_accepted(folder, name, value):
    edit(folder / "adapter_config.json", lambda config: config.update({name: value}))
    assert same(load_adapter(folder), make())


@pytest.mark.parametrize("alpha_is_rank", [1, 2])
def test_another_rank_than_the_config_says_is_refused(folder, alpha_is_rank):
    edit(folder / "adapter_config.json", lambda config: config.update(r=RANK + alpha_is_rank))
    assert f"with r = {RANK + alpha_is_rank}" in refusal(folder)


LORA_DAMAGE = {
    "a missing half": (lambda t: t.pop(Q2B), "lora_B of layer 2 q_proj is missing"),
    "a missing module": (lambda t: [t.pop(Q2), t.pop(Q2B)], "missing: layer 2 q_proj"),
    "a layer below the fork": (
        lambda t: t.update({k.replace("s.2.", "s.1."): v.clone() for k, v in t.items()}),
        "extra: layer 1 down_proj",
    ),
    "a layer beyond the last": (
        lambda t: t.update({k.replace("s.3.", "s.4."): v.clone() for k, v in t.items()}),
        "extra: layer 4 down_proj",
    ),
    "a layer written twice": (
        lambda t: t.update({Q2.replace(".2.", ".02."): t[Q2].clone()}),
        "is not one that is served",
    ),
    "a foreign tensor": (lambda t: t.update(extra=torch.ones(1)), "'extra' is not one that is"),
    "a module elsewhere": (
        lambda t: t.update({Q2.replace("self_attn", "mlp"): t[Q2].clone()}),
        "is not one that is served",
    ),
    "an unknown module": (
        lambda t: t.update({Q2.replace("q_proj", "qkv_proj"): t[Q2].clone()}),
        "accepted: A and B of q_proj",
    ),
    "A of another rank": (lambda t: t.update({Q2: torch.ones(RANK + 1, H)}), "with r = 3"),
    "B of another rank": (lambda t: t.update({Q2B: torch.ones(32, RANK + 1)}), "with r = 3"),
    "A of one dimension": (lambda t: t.update({Q2: torch.ones(RANK)}), "with r = 3"),
    "A of another width": (lambda t: t.update({Q2: torch.ones(RANK, H + 1)}), "width 33"),
    "B of another width": (
        lambda t: t.update(
            {"base_model.model.model.layers.3.mlp.down_proj.lora_B.weight": torch.ones(9, RANK)}
        ),
        "layer 3 down_proj meets the residual stream with width 9",
    ),
    "NaN": (lambda t: t[Q2].fill_(float("nan")), "LoRA A of layer 2 q_proj holds NaN"),
    "infinity": (lambda t: t[Q2B].fill_(float("inf")), "LoRA B of layer 2 q_proj holds NaN"),
    "float64": (lambda t: t.update({Q2: t[Q2].double()}), "is torch.float64; accepted: torch.fl"),
    "integers": (lambda t: t.update({Q2: t[Q2].int()}), "is torch.int32"),
}


@pytest.mark.parametrize("damage", LORA_DAMAGE)
def test_damaged_lora_tensors_are_refused(folder, damage):
    change, expected = LORA_DAMAGE[damage]
    edit(folder / "adapter_model.safetensors", change)
    assert expected in refusal(folder)


def test_a_lora_without_tensors_is_refused(folder):
    edit(folder / "adapter_config.json", lambda config: config.update(target_modules=[]))
    edit(folder / "adapter_model.safetensors", dict.clear)
    assert "Accepted: the same modules in every layer 2..3" in refusal(folder)


HEAD_DAMAGE = {
    "a missing head": (lambda t: t.pop("B"), "holds the tensors A; accepted: exactly A and B"),
    "an extra head": (lambda t: t.update(C=torch.ones(1)), "holds the tensors A, B, C"),
    "another number of dimensions": (
        lambda t: t.update(A=torch.ones(3, HEAD_RANK, H)),
        "head A has shape [3, 2, 32]; accepted: [D, r, H] = [2, 2, 32]",
    ),
    "another rank": (lambda t: t.update(A=torch.ones(2, 5, H)), "head A has shape [2, 5, 32]"),
    "another hidden size": (lambda t: t.update(B=torch.ones(2, 9, HEAD_RANK)), "head B has shape"),
    "A and B swapped": (
        lambda t: t.update(A=t["B"].clone(), B=t["A"].clone()),
        "head A has shape [2, 32, 2]",
    ),
    "NaN": (lambda t: t["A"].fill_(float("nan")), "head A holds NaN"),
    "infinity": (lambda t: t["B"].fill_(float("-inf")), "head B holds NaN"),
}


@pytest.mark.parametrize("damage", HEAD_DAMAGE)
def test_damaged_heads_are_refused(folder, damage):
    change, expected = HEAD_DAMAGE[damage]
    edit(folder / "preference_heads.safetensors", change)
    assert expected in refusal(folder)


def test_an_adapter_made_in_memory_is_checked_like_one_from_disk():
    ours = make()
    with pytest.raises(AdapterError, match="head A has shape"):
        dataclasses.replace(ours, head_A=ours.head_B)
    with pytest.raises(AdapterError, match="scaling is 2.0; accepted: alpha / rank = 3.0 / 3"):
        dataclasses.replace(ours.lora, scaling=2.0)
    with pytest.raises(AdapterError, match="layer 2 c_attn"):
        LoRA(1, 1.0, 1.0, {(2, "c_attn"): (torch.ones(1, H), torch.ones(H, 1))})


@pytest.fixture
def top(tmp_path):
    """Heads only, with constants."""
    save_adapter(make(fork=LAYERS, constants=True), tmp_path / "top", "")
    return tmp_path / "top"


@pytest.mark.parametrize("gates", [False, True])
@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("fork", [FORK, LAYERS])
def test_any_fork_with_or_without_constants_and_gates_comes_back(tmp_path, fork, constants, gates):
    ours = make(fork=fork, constants=constants, gates=gates)
    save_adapter(ours, tmp_path / "adapter", "")
    loaded = load_adapter(tmp_path / "adapter")
    assert same(loaded, ours)
    assert loaded.digest == ours.digest
    needed = 4 if gates else 2 if fork == LAYERS or constants else 1
    assert loaded.config.format_version == needed
    assert (loaded.head_G is not None) == loaded.config.gated == gates


def test_a_fork_at_the_top_has_no_peft_files(top):
    kept = ["README.md", "pad_config.json", "preference_heads.safetensors"]
    assert sorted(path.name for path in top.iterdir()) == kept
    assert load_adapter(top).lora.weights == {}


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
)
def test_a_peft_file_beside_a_fork_at_the_top_is_refused(top, name):
    (top / name).write_bytes(b"{}")
    assert f"{name} would not be read: fork_layer is at the top" in refusal(top)


def test_the_constants_are_seen_by_the_digest():
    ours = make(fork=LAYERS, constants=True)
    others = [
        dataclasses.replace(ours, head_C=None),
        dataclasses.replace(ours, head_C=ours.head_C + 1),
    ]
    assert len({other.digest for other in (ours, *others)}) == 3


def test_an_adapter_without_gates_is_written_as_before_there_were_gates(top):
    settings = json.loads((top / "pad_config.json").read_text())
    assert settings["format_version"] == 2
    assert "gated" not in settings
    assert sorted(load_file(top / "preference_heads.safetensors")) == ["A", "B", "C"]


def test_the_gates_are_seen_by_the_digest():
    ours = make(fork=LAYERS, gates=True)
    changed = dataclasses.replace(ours, head_G=ours.head_G + 1)
    assert len({one.digest for one in (ours, changed, make(fork=LAYERS))}) == 3


def test_gates_that_the_config_does_not_announce_or_that_are_missing_are_refused(tmp_path, top):
    file = "preference_heads.safetensors"
    edit(top / file, lambda t: t.update(G=torch.ones(2, HEAD_RANK, H)))
    assert (
        'accepted: A, B and, for constants, C; G from format_version 4 on, with "gated": true'
        in (refusal(top))
    )
    edit(top / "pad_config.json", lambda c: c.update(gated=True))
    assert "format_version is 2; accepted: 4 for gated heads" in refusal(top)
    edit(top / "pad_config.json", lambda c: c.update(format_version=4))
    assert load_adapter(top).head_G.shape == (2, HEAD_RANK, H)
    edit(top / file, lambda t: t.update(G=torch.ones(2, H, HEAD_RANK)))
    assert f"head G has shape [2, {H}, {HEAD_RANK}]; accepted: [D, r, H]" in refusal(top)
    edit(top / file, lambda t: t.update(G=torch.full((2, HEAD_RANK, H), torch.inf)))
    assert "head G holds NaN or infinity" in refusal(top)
    edit(top / file, lambda t: t.pop("G"))
    assert "accepted: A, B, G and, for constants, C" in refusal(top)
    edit(top / "pad_config.json", lambda c: c.update(gated=1))
    assert "gated is 1; accepted: true or false" in refusal(top)
    with pytest.raises(AdapterError, match="head G exists, but gated is False"):
        dataclasses.replace(make(), head_G=torch.ones(2, HEAD_RANK, H))
    with pytest.raises(AdapterError, match="head G is missing, but gated is True"):
        dataclasses.replace(make(gates=True), head_G=None)


def test_learned_prefixes_stand_beside_gated_heads(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    folder = tiny.write_adapter(
        base, tmp_path / "both", fork_layer=4, std=0.1, gates=True, prefixes=("humor",)
    )
    loaded = load_adapter(folder)
    assert loaded.config.format_version == 4
    assert loaded.head_G is not None
    assert set(loaded.prefixes) == {"humor"}


def test_an_adapter_is_replaced_by_heads_only_and_back(folder):
    for other in (make(fork=LAYERS), make()):
        save_adapter(other, folder, "")
        assert same(load_adapter(folder), other)


def test_constants_of_another_shape_or_version_are_refused(top):
    edit(top / "preference_heads.safetensors", lambda t: t.update(C=torch.ones(2, 9)))
    assert "head C has shape [2, 9]; accepted: [D, H] = [2, 32]" in refusal(top)
    edit(top / "preference_heads.safetensors", lambda t: t.update(C=torch.full((2, H), torch.nan)))
    assert "head C holds NaN" in refusal(top)
    edit(top / "preference_heads.safetensors", lambda t: t.update(X=torch.ones(1)))
    assert "accepted: A, B and, for constants, C" in refusal(top)
    with pytest.raises(AdapterError, match="accepted: constants from format_version 2 on"):
        dataclasses.replace(make(), head_C=torch.ones(2, H))


def test_a_lora_in_memory_is_refused_where_the_fork_is_at_the_top():
    with pytest.raises(
        AdapterError, match="extra: layer 2 down_proj.* fork is at the top, layer 4"
    ):
        dataclasses.replace(make(fork=LAYERS), lora=make().lora)


def test_an_adapter_saved_by_the_first_release_loads_as_it_was():
    shipped = Path(__file__).parents[1] / "forked_adapter"
    assert (
        load_adapter(shipped).digest
        == "d4c5b6513cb9ced0baba70fd9b20061d509365bf6333893e6dae0e31f61d07d6"
    )
