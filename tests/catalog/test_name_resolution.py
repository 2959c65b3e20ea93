"""Names of bases and adapters are turned into folders; a worker fetches nothing."""

import pytest

from pad_vllm.catalog import model_downloads, name_resolution
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base, resolve_local_base


def test_a_known_name_is_fetched_and_any_other_is_left_to_vllm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_downloads, "fetch_model", lambda name: tmp_path / "cache" / name)

    assert resolve_base("smollm2-135m") == str(tmp_path / "cache" / "smollm2-135m")
    assert resolve_base("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("models/Llama-Q4_K_M.GGUF", "is a GGUF file.*accepted: a folder of safetensors"),
        ("s3://bucket/llama", "is an address.*accepted: a folder or a hub name"),
    ],
)
def test_what_vllm_cannot_load_under_pad_is_refused_by_name(base, said):
    with pytest.raises(model_downloads.ModelError, match=said):
        resolve_base(base)


def test_a_folder_of_that_name_comes_before_the_known_name(monkeypatch, tmp_path):
    (tmp_path / "smollm2-135m").mkdir()
    monkeypatch.chdir(tmp_path)

    assert resolve_base("smollm2-135m") == "smollm2-135m"


def test_an_adapter_becomes_an_absolute_folder(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pad_config.json").touch()
    monkeypatch.chdir(tmp_path)

    assert resolve_adapter("mine") == str(tmp_path / "mine")


def test_demo_is_the_adapter_in_the_package_for_the_base(monkeypatch, tmp_path):
    for name in ("smollm2-135m-demo", "qwen2.5-coder-0.5b-demo"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pad_config.json").touch()
    monkeypatch.setattr(name_resolution, "_SHIPPED", tmp_path)
    small, larger = str(tmp_path / "smollm2-135m-demo"), str(tmp_path / "qwen2.5-coder-0.5b-demo")

    assert resolve_adapter("demo") == resolve_adapter("demo", "smollm2-135m") == small
    assert resolve_adapter("demo", "org/other") == small  # refused later, by its name
    for base in ("qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct", "/cache/qwen2.5-coder-0.5b"):
        assert resolve_adapter("demo", base) == larger


def test_an_adapter_with_a_trunk_ships_for_some_bases_only(monkeypatch, tmp_path):
    for name in ("smollm2-135m-demo", "qwen2.5-coder-0.5b-demo", "qwen2.5-coder-0.5b-demo-trunk"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(name_resolution, "_SHIPPED", tmp_path)
    folder = str(tmp_path / "qwen2.5-coder-0.5b-demo-trunk")

    assert resolve_adapter("demo-trunk", "qwen2.5-coder-0.5b") == folder
    for base in (None, "smollm2-135m", "org/other"):
        with pytest.raises(
            ValueError, match=r"none .* ships .*`demo-trunk` for qwen2\.5-coder-0\.5b"
        ):
            resolve_adapter("demo-trunk", base)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no pad_config.json. Accepted: .*`demo`"):
        resolve_adapter(str(tmp_path))


def test_the_title_in_an_adapters_config_finds_the_fetched_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_downloads, "fetched_model_folder", lambda name: tmp_path / name)

    assert resolve_local_base("SmolLM2-135M-Instruct") == str(tmp_path / "smollm2-135m")
    assert resolve_local_base("org/other") == "org/other"


def test_a_worker_fetches_nothing_and_its_error_says_how_to(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_downloads, "fetched_model_folder", lambda name: None)
    monkeypatch.setattr(model_downloads, "fetch_model", lambda name: pytest.fail("fetched"))

    with pytest.raises(ValueError, match="Fetch it first: pad-vllm models smollm2-135m"):
        resolve_local_base("smollm2-135m")
