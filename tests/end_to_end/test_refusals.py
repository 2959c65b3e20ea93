"""Through vLLM's own start-up: what cannot work ends before an engine, and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from engine_processes import HERE, EngineFailed, engine_slot, environment, pad, plain, run, tail
from safetensors.torch import load_file, save_file

from pad_vllm.config import LOGITS_PROCESSOR

pytestmark = pytest.mark.engine

LORA = "adapter_model.safetensors"
HEADS = "preference_heads.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.checkpoint("llama", tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def good(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "adapter"
    return tiny.write_adapter(base, folder, fork_layer=2, std=0.05)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """A family that PAD does not serve, with Llama's shape."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("other") / "phi"
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **tiny.COMMON))
    made.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def spoiled(good, folder, file, change):
    """A copy of the adapter with one file changed: bytes to bytes, or tensor by tensor."""
    shutil.copytree(good, folder)
    path = folder / file
    path.write_bytes(change(path.read_bytes()))
    return folder


def tensors(file, change):
    """A change of every tensor in a safetensors file, as `spoiled` wants it."""

    def rewrite(_):
        changed = {name: change(tensor) for name, tensor in load_file(file).items()}
        save_file(changed, file.with_suffix(".changed"), metadata={"format": "pt"})
        return file.with_suffix(".changed").read_bytes()

    return rewrite


def another(text):
    """A change of pad_config.json's settings."""
    return lambda content: json.dumps({**json.loads(content), **text}).encode()


@pytest.fixture(scope="module")
def attempts(base, good, other_model, tmp_path_factory):
    """Name of the case -> (arguments of LLM, what the refusal says)."""
    make = tmp_path_factory.mktemp("spoiled")

    def broken(file, change):
        folder = make / f"{len(list(make.iterdir()))}"
        return pad(base, spoiled(good, folder, file, change))

    foreign = tiny.checkpoint("qwen3", make / "qwen3")
    foreign = tiny.write_adapter(foreign, make / "foreign", fork_layer=2, std=0.05)
    retrained = make / "retrained"
    shutil.copytree(base, retrained)
    tiny.model("llama", seed=1).save_pretrained(retrained)
    heads = tensors(make / "heads.safetensors", lambda tensor: tensor * torch.nan)
    shutil.copy(good / HEADS, make / "heads.safetensors")
    wired = pad(base, good)
    without_format = {name: value for name, value in wired.items() if name != "load_format"}
    draft = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    return {
        "nothing": (wired, ""),
        "other weights, allowed": (pad(retrained, good, {"allow_backbone_mismatch": True}), ""),
        "missing path": (pad(base, "nowhere/at/all"), "does not exist; accepted is a local folder"),
        "hub name": (pad(base, "someone/adapter"), "hf download someone/adapter"),
        "no adapter": (pad(base, base), "has no pad_config.json"),
        "broken config": (broken("pad_config.json", lambda text: text[:40]), "not valid JSON"),
        "newer format": (
            broken("pad_config.json", another({"format_version": 99})),
            "format_version is 99; this pad_vllm reads 1 to 4. Upgrade pad_vllm",
        ),
        "truncated LoRA": (broken(LORA, lambda content: content[:-64]), "cut short"),
        "pickle": (broken(LORA, lambda _: b"\x80\x04junk" * 99), "no safetensors file"),
        "NaN": (broken(HEADS, heads), "preference head A holds NaN or infinity"),
        "foreign": (pad(base, foreign), "architectures Qwen3ForCausalLM, and the served"),
        "other weights": (pad(retrained, good), "set allow_backbone_mismatch to true"),
        "unsupported model": (
            pad(other_model, good),
            "cannot fork Phi3ForCausalLM; it serves Gemma3ForCausalLM, LlamaForCausalLM",
        ),
        "LoRA": (
            pad(base, good, enable_lora=True),
            "does not fork a model with --enable-lora yet; drop it",
        ),
        "pipeline": (
            pad(base, good, pipeline_parallel_size=4),
            "of 4 layers the last of 4 stages has those from 3 on; accepted fork layers: 3, 4 (at the top",
        ),
        "pipeline by Ray": (
            pad(base, good, pipeline_parallel_size=2, distributed_executor_backend="ray"),
            "pipeline parallelism beyond the processes of one machine yet; drop --nnodes",
        ),
        "KV connector": (
            pad(base, good, kv_offloading_size=1),
            "not fork a model with a KV connector (--kv-transfer-config, --kv-offloading-size) yet",
        ),
        "speculation": (
            pad(base, good, speculative_config=draft),
            "does not support speculative decoding on vLLM's V1 runner yet; drop --speculative-config",
        ),
        "Rust": (
            {**wired, "environment": {"VLLM_USE_RUST_FRONTEND": "1"}},
            "Rust front end yet; unset VLLM_USE_RUST_FRONTEND",
        ),
        "twice": (
            pad(base, good, logits_processors=[LOGITS_PROCESSOR, LOGITS_PROCESSOR]),
            "PADLogitsProcessor is given 2 times, and once is needed",
        ),
        "no processor": (pad(base, good, logits_processors=[]), "is given 0 times"),
        "no load format": (without_format, "needs load format 'pad', and this is 'auto'"),
        "no settings": (pad(base, good, additional_config={}), "no 'pad' entry"),
        "processor alone": (
            plain(base, logits_processors=[LOGITS_PROCESSOR]),
            "needs load format 'pad'",
        ),
        "misspelt setting": (pad(base, good, {"max_bta": 3}), "Did you mean 'max_beta'?"),
        "load format within": (pad(base, good, {"load_format": "pad"}), "would make PAD's loader"),
        "no such backbone": (
            pad(base, good, {"engine": "ray", "backbone": "/no/such/folder"}),
            "--additional-config.pad.backbone PATH",
        ),
        "default too strong": (
            pad(base, good, {"max_beta": 1}),
            "default beta is 2, and this engine accepts at most 1. Raise max_beta",
        ),
    }


CASES = (
    "missing path",
    "hub name",
    "no adapter",
    "broken config",
    "newer format",
    "truncated LoRA",
    "pickle",
    "NaN",
    "foreign",
    "other weights",
    "unsupported model",
    "LoRA",
    "pipeline",
    "pipeline by Ray",
    "KV connector",
    "speculation",
    "Rust",
    "twice",
    "no processor",
    "no load format",
    "no settings",
    "processor alone",
    "misspelt setting",
    "load format within",
    "no such backbone",
    "default too strong",
)


@pytest.fixture(scope="module")
def refusals(attempts, tmp_path_factory):
    """Name of the case -> the exception that LLM(...) raised, all tried in one process."""
    scratch = tmp_path_factory.mktemp("attempts")
    given, made, log = (scratch / name for name in ("given.json", "made.json", "log"))
    given.write_text(json.dumps([arguments for arguments, _ in attempts.values()]), "utf-8")
    with engine_slot():
        code = run([HERE / "start_attempts.py", given, made], log, None, 600)
    if code != 0:
        raise EngineFailed(tail(log))
    return dict(zip(attempts, json.loads(made.read_text("utf-8")), strict=True))


@pytest.mark.parametrize("name", ["nothing", "other weights, allowed"])
def test_what_is_right_reaches_the_engine(refusals, name):
    assert refusals[name] == {"class": "EngineReached", "text": ""}


@pytest.mark.parametrize("name", CASES)
def test_llm_raises_a_value_error_that_says_what_to_do(attempts, refusals, name):
    assert attempts[name][1] in refusals[name]["text"]
    assert refusals[name]["class"] in {"ValueError", "AdapterError"}


def test_every_case_is_looked_at(attempts):
    assert set(CASES) | {"nothing", "other weights, allowed"} == set(attempts)


def test_pad_vllm_serve_ends_with_the_reason_on_the_terminal(base, good, tmp_path):
    broken = tmp_path / "broken"
    spoiled(good, broken, LORA, lambda content: content[:-64])
    command = ["-m", "pad_vllm", "serve", base, "--adapter", broken, "--enforce-eager"]
    log = tmp_path / "log"
    with engine_slot():
        code = run([*command, "--port", "0"], log, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, 300)

    assert code not in {0, None}
    reason = log.read_text("utf-8").rstrip().splitlines()[-1]
    assert f"adapter {broken}: {LORA} is cut short" in reason
    assert "Copy it again." in reason


def run_with_plugins(code, allowed):
    """Python code in a process of its own, where vLLM loads these plugins."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**environment(), "VLLM_PLUGINS": allowed},
        cwd=os.sep,
    )


def test_without_its_plugin_an_engine_ends_with_the_reason(base, good):
    code = (
        "from vllm import LLM;"
        f"LLM({str(base)!r}, load_format='pad', logits_processors=['pad_vllm:PADLogitsProcessor'],"
        f"additional_config={{'pad': {{'adapter': {str(good)!r}}}}})"
    )
    done = run_with_plugins(code, "other")
    assert done.returncode
    assert "VLLM_PLUGINS=other keeps vLLM from loading PAD. Unset it" in done.stderr


def test_an_installed_pad_vllm_leaves_other_engines_alone():
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins();"
        "from vllm.model_executor.model_loader import get_model_loader;"
        "from vllm.config.load import LoadConfig;"
        "print(type(get_model_loader(LoadConfig(load_format='pad'))).__name__,"
        "type(get_model_loader(LoadConfig())).__name__)"
    )
    done = run_with_plugins(code, "pad")
    done.check_returncode()
    assert done.stdout.split()[-2:] == ["PADModelLoader", "DefaultModelLoader"]
