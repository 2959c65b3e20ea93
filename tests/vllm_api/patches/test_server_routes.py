"""The function by which vLLM adds routes calls PAD's once, whatever is called how often."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from pad_vllm.vllm_api.patches import server_routes
from pad_vllm.vllm_api.vllm_versions import IncompatibleVLLM


@pytest.fixture
def vllms(monkeypatch):
    """A module that stands in for vLLM's, and the calls of its function."""
    called = []
    module = SimpleNamespace(register_generate_api_routers=lambda app: called.append(("vllm", app)))
    monkeypatch.setattr(server_routes, "import_module", lambda _: module)
    return module, called


def test_pads_routes_come_after_vllms_and_once(vllms):
    module, called = vllms

    def extend(app):
        called.append(("pad", app))

    server_routes.extend_server_app(extend)
    server_routes.extend_server_app(extend)
    module.register_generate_api_routers("app")

    assert called == [("vllm", "app"), ("pad", "app")]


def test_a_vllm_without_the_function_is_refused_with_its_version(vllms):
    module, _ = vllms
    del module.register_generate_api_routers

    with pytest.raises(IncompatibleVLLM, match="pad_vllm accepts vLLM"):
        server_routes.extend_server_app(print)
