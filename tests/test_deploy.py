"""Containers, manifests and workflows say this version, run as nobody in particular, and pin what they use.

Their schemas are checked by scripts/check_deploy.sh, which needs a package index.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from pad_vllm.version import __version__
from pad_vllm.vllm_api.vllm_versions import TESTED_VERSIONS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile*"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def manifests():
    (file,) = (DEPLOY / "kubernetes").glob("*.yaml")
    return {document["kind"]: document for document in yaml.safe_load_all(file.read_text())}


def pod():
    return manifests()["Deployment"]["spec"]["template"]["spec"]


def instructions(dockerfile):
    """(keyword, rest) of every instruction."""
    joined = dockerfile.read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


@pytest.mark.parametrize("file", sorted(DEPLOY.rglob("*.*")) + DOCKERFILES, ids=lambda f: f.name)
def test_every_image_of_ours_has_this_version(file):
    versions = set(re.findall(r"pad-vllm:(\d[\w.]*\d)", file.read_text()))
    assert versions <= {__version__}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_an_image_runs_as_a_user_of_its_own_and_says_whether_it_serves(file):
    found = dict(instructions(file))
    assert found["USER"].isdigit()
    assert int(found["USER"]) >= 10_000
    assert "/health" in found["HEALTHCHECK"]
    assert found["ENTRYPOINT"] == '["pad-vllm", "serve"]'


def test_the_images_have_the_vllm_that_is_tested():
    (base,) = re.findall(r"vllm/vllm-openai:v(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert base.rpartition(".")[0] in TESTED_VERSIONS
    torch = re.findall(r"torch==(\S+)", (DEPLOY / "Dockerfile.cpu").read_text())
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    assert torch == [f"{re.search(r'^TORCH=(.+)$', setup, re.MULTILINE)[1]}+cpu"]


def test_every_container_is_confined():
    (container,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_pod_has_the_secrets_that_profiles_need():
    (container,) = pod()["containers"]
    optional = {
        one["name"] for one in container["env"] if one["valueFrom"]["secretKeyRef"].get("optional")
    }
    assert {"PGPASSWORD", "PAD_TOKEN_SECRET"} <= optional
    assert "--profile-tokens env:PAD_TOKEN_SECRET" in (DEPLOY / "README.md").read_text()


def test_the_service_leads_to_the_pod_and_the_probes_to_a_route_without_a_key():
    found = manifests()
    assert found["Service"]["spec"]["selector"].items() <= (
        found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )
    (container,) = pod()["containers"]
    probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert all(probe["httpGet"] == {"path": "/health", "port": "http"} for probe in probes)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda f: f.name)
def test_a_workflow_pins_what_it_uses_and_may_do_nothing_by_default(file):
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", one) for one in used), used
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_a_release_is_uploaded_without_a_token():
    publish = yaml.safe_load((ROOT / ".github/workflows/release.yaml").read_text())["jobs"][
        "publish"
    ]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "release"
    assert not any("with" in step for step in publish["steps"] if "pypi-publish" in step["uses"])


def test_the_linters_are_pinned():
    script = (ROOT / "scripts" / "check_deploy.sh").read_text()
    named = re.findall(r"^run (\S+)", script, re.MULTILINE)
    assert named
    assert all(str(Requirement(name).specifier).startswith("==") for name in named)
