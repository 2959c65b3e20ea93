"""What tests share: the two real models, and an adapter that changes what SmolLM2 says."""

from __future__ import annotations

import os
from pathlib import Path

# Before PyTorch is imported: tests run on two processes, and threads that wait for each other cost
# small models many times what they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Helpers that hold asserts.
pytest.register_assert_rewrite("planted_preferences", "pytorch_twin", "rule_at_engine_states")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is no folder is looked for nowhere else

FORKED = Path(__file__).parent / "forked_adapter"


def pytest_collection_modifyitems(items):
    """Files with engines first, then the training runs: the short ones fill the end of two processes."""
    engines = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(
        key=lambda item: (item.path not in engines, item.path.name != "test_training_run.py")
    )


@pytest.fixture(scope="module")
def one_thread():
    """Threads cost small models more than they give, many times over on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct: Llama architecture, 30 layers."""
    return _model("smollm2-135m")


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """Gemma-3-270m: 18 layers, sliding-window and full attention."""
    return _model("gemma3-270m")


@pytest.fixture(scope="session")
def adapter() -> Path:
    """Of SmolLM2, forked at layer 22 of 30: what the first releases shipped."""
    return FORKED


def _model(name: str) -> Path:
    from pad_vllm.catalog.model_downloads import fetch_model

    return fetch_model(name, quiet=True)
