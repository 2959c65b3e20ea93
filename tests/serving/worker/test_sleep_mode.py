"""A resident reward model beside a base that sleeps: it is no part of the memory that vLLM discards."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from pad_vllm.engines.reward_model import scorer_loader
from pad_vllm.serving.start import config_checks
from pad_vllm.serving.worker import model_loader


@pytest.fixture
def load(monkeypatch):
    """Makes the resident engine of a config -> (the thread that made its reward model, what was logged)."""

    def run(*, sleeps):
        threads, logged = [], []

        def make(*_, device, **__):
            threads.append(threading.get_ident())
            return SimpleNamespace(require_own_weights=lambda: None, device=device)

        monkeypatch.setattr(scorer_loader, "make_reward_scorer", make)
        monkeypatch.setattr(config_checks, "make_token_aligner", lambda *_: None)
        monkeypatch.setattr(model_loader.token_columns, "attach_token_columns", lambda *_: None)
        monkeypatch.setattr(
            model_loader.logger, "warning", lambda text, *args: logged.append(text % args)
        )
        loaded = SimpleNamespace(
            pad=SimpleNamespace(device="cpu", adapter="folder", on_failure="unguided"),
            instance=SimpleNamespace(failure_log=None),
            model_config=SimpleNamespace(dtype=None, enable_sleep_mode=sleeps),
            adapter=None,
            model=None,
            config=None,
        )
        model_loader._resident_engine(loaded)
        return threads[0], logged

    return run


def test_it_is_loaded_outside_of_the_pool_of_the_thread_that_loads_the_base(load):
    thread, logged = load(sleeps=True)
    assert thread != threading.get_ident()
    assert "weights and its KV cache stay on cpu" in logged[0]


def test_without_sleep_mode_it_is_loaded_where_the_base_is(load):
    assert load(sleeps=False) == (threading.get_ident(), [])


def test_what_goes_wrong_there_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        model_loader._outside_of_vllms_pool(lambda: 1 / 0)
