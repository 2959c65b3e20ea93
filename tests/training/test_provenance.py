"""The revision that an adapter's record names is this project's, or none."""

from __future__ import annotations

import subprocess

from pad_vllm.training import provenance


def test_an_installed_package_has_no_revision_also_inside_another_projects_checkout(
    tmp_path, monkeypatch
):
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    packages.mkdir(parents=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    monkeypatch.setattr(provenance, "_ROOT", packages)
    assert provenance.git_revision() is None
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.git_revision()
