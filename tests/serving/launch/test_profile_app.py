"""The routes of users without an engine."""

from __future__ import annotations

import pytest
import tiny

pytest.importorskip("vllm")
pytest.importorskip("sqlalchemy")

from fastapi.testclient import TestClient

from pad_vllm.serving.launch.profile_app import profile_app


def test_what_is_posted_is_in_the_database_that_servers_share(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    adapter = tiny.write_adapter(
        base, tmp_path / "adapter", fork_layer=2, std=0.1, dimensions=("kind", "dry")
    )
    settings = {"adapter": str(adapter), "profiles": str(tmp_path / "users.db")}
    one, two = (TestClient(profile_app(settings)) for _ in range(2))

    thumb = {"answer": "a", "weights": {"kind": 1}, "liked": True}
    posted = one.post("/v1/pad/users/alice/choices", json=thumb)

    assert posted.status_code == 200, posted.text
    assert two.get("/v1/pad/users/alice").json() == posted.json()
    assert one.post("/v1/pad/users/alice/question", json={}).status_code == 501


def test_without_a_database_it_is_refused():
    with pytest.raises(ValueError, match="profiles is not given"):
        profile_app({"adapter": "somewhere"})
