"""Jobs that make a dimension of a sentence, with a program that only writes down what it was told to do."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import tiny
from fastapi.testclient import TestClient
from front_end_app import front_end_app

from pad_vllm.config import PADConfig
from pad_vllm.serving.frontend.dimension_jobs import (
    DimensionJobs,
    JobRefused,
    JobSettings,
    make_dimension_jobs,
)
from pad_vllm.serving.start.dimension_job_settings import RUNTIME_ADAPTERS
from pad_vllm.serving.start.made_adapters import latest_made_adapter

PROGRAM = """
import json, os, sys, time
print("answers: 48 to draw, of at most 60 tokens", flush=True)
print("\\rhalf a bar\\rthe teacher's rewards: 3 of 4", flush=True)
{then}
with open({log!r}, "a") as log:
    print(json.dumps([sys.argv[1:], os.getpriority(os.PRIO_PROCESS, 0)]), file=log)
"""
DIMENSIONS = ("warm", "brief")
SENTENCE = "Answer like a pirate; $(touch x) `y` 'z' \"w\" --out=/tmp =& é"


class Server:
    """What a server would do with the adapters that jobs make."""

    def __init__(self, refusal=None):
        self.loaded, self.refusal = [], refusal

    async def load(self, name, folder):
        if self.refusal:
            raise ValueError(self.refusal)
        self.loaded.append((name, folder))


@pytest.fixture
def make_jobs(tmp_path):
    """Jobs whose program ends as told; its command lines are in tmp_path/log."""

    def make(then="", **settings):
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.format(log=str(tmp_path / "log"), then=then))
        given = JobSettings(
            "base", tmp_path / "made", program=(sys.executable, str(script)), **settings
        )
        return DimensionJobs(given, "/adapters/served", DIMENSIONS)

    return make


def commands(tmp_path):
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


async def finished(job):
    while job.state == "running":  # noqa: ASYNC110 a client asks again and again too
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # the loop closes the pipes of a process a moment after its end
    return job


def run_job(jobs, server, name="pirate", sentence=SENTENCE):
    async def run():
        return await finished(jobs.start(name, sentence, server.load))

    return asyncio.run(run())


def test_a_job_trains_merges_and_loads(make_jobs, tmp_path):
    server = Server()
    job = run_job(make_jobs(), server)

    assert (job.state, job.adapter) == ("done", "with-pirate")
    (train, _), (merge, _) = commands(tmp_path)
    assert train[:2] == ["train", "base"]
    assert merge[:2] == ["merge", "/adapters/served"]
    assert merge[2] == train[train.index("--out") + 1]
    assert server.loaded == [("with-pirate", merge[-1])]
    assert Path(merge[-1]).is_relative_to(tmp_path / "made")


def test_a_sentence_reaches_the_command_as_one_argument_and_no_shell_reads_it(make_jobs, tmp_path):
    run_job(make_jobs(), Server())

    train = commands(tmp_path)[0][0]
    assert train[train.index("--dimension") + 1] == f"pirate={SENTENCE}"


def test_commands_have_a_lower_priority_than_the_server(make_jobs, tmp_path):
    run_job(make_jobs("time.sleep(0.2)"), Server())

    assert os.getpriority(os.PRIO_PROCESS, 0) < 10
    assert [priority for _, priority in commands(tmp_path)] == [10, 10]


def test_the_next_job_adds_to_what_the_last_one_made(make_jobs, tmp_path):
    server, jobs = Server(), make_jobs()
    run_job(jobs, server)
    run_job(jobs, server, "poetic")

    merges = [command for command, _ in commands(tmp_path) if command[0] == "merge"]
    assert merges[1][1] == server.loaded[0][1]
    with pytest.raises(ValueError, match="there is a dimension pirate already"):
        run_job(jobs, server, "pirate")


def test_one_job_runs_at_a_time_and_leaves_the_event_loop_free(make_jobs):
    async def run():
        jobs = make_jobs("time.sleep(0.5)")
        job = jobs.start("pirate", SENTENCE, Server().load)
        await asyncio.sleep(0.01)
        with pytest.raises(JobRefused, match="which makes pirate"):
            jobs.start("poetic", SENTENCE, Server().load)
        late = 0.0
        while job.state == "running":
            before = time.monotonic()
            await asyncio.sleep(0.01)
            late = max(late, time.monotonic() - before - 0.01)
        assert job.state == "done"
        return late

    assert asyncio.run(run()) < 0.4


@pytest.mark.parametrize(
    ("then", "refusal", "said"),
    [
        (
            "sys.exit('Error: the base has no\\n chat template')",
            None,
            "the base has no chat template",
        ),
        (
            "sys.exit(3)",
            None,
            "pad-vllm train: it ended with code 3: the teacher's rewards: 3 of 4",
        ),
        ("", "it does not fit beside the first one", "it does not fit"),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_one_can_run(make_jobs, then, refusal, said):
    jobs = make_jobs(then)
    job = run_job(jobs, Server(refusal))

    assert job.state == "failed"
    assert said in job.as_json()["message"]
    assert job.as_json()["adapter"] is None
    assert run_job(jobs, Server(refusal)).state == "failed"  # the name is free: nothing was made


def test_a_failure_tells_no_path_of_the_servers(make_jobs, tmp_path):
    job = run_job(make_jobs(f"sys.exit('Error: {tmp_path}/made/trained is full')"), Server())

    assert str(tmp_path) not in job.as_json()["message"]


def test_a_job_that_is_stopped_leaves_no_process(make_jobs, tmp_path):
    then = "import subprocess; child = subprocess.Popen(['sleep', '60'])\nprint('pid', child.pid, flush=True)"
    written, read = str(tmp_path / "new"), str(tmp_path / "pid")
    then += f"\nopen({written!r}, 'w').write(str(child.pid)); os.rename({written!r}, {read!r})"
    then += "\ntime.sleep(60)"

    async def run():
        jobs = make_jobs(then)
        job = jobs.start("pirate", SENTENCE, Server().load)
        while not (tmp_path / "pid").exists():  # noqa: ASYNC110 another process writes it
            await asyncio.sleep(0.01)
        jobs.stop()
        return await finished(job)

    assert asyncio.run(run()).state == "failed"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(200):
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("the command's own child goes on")


def test_a_chat_template_of_the_served_adapter_goes_to_the_training(make_jobs, tmp_path):
    run_job(make_jobs(chat_template="{{ messages }}"), Server())

    train = commands(tmp_path)[0][0]
    assert Path(train[train.index("--chat-template") + 1]).read_text() == "{{ messages }}"


@pytest.mark.parametrize("name", ["", "2fast", "a b", "-x", "a=b", "ü", "warm", "a" * 41, "a\nb"])
def test_names_that_are_none_are_refused(make_jobs, name):
    with pytest.raises(ValueError, match="accepted"):
        run_job(make_jobs(), Server(), name)


@pytest.mark.parametrize("sentence", ["", "   ", "a\nb", "a\0b", "\ud800", "a" * 401, "\x1b[31m"])
def test_sentences_that_are_none_are_refused(make_jobs, sentence):
    with pytest.raises(ValueError, match="accepted"):
        run_job(make_jobs(), Server(), "pirate", sentence)


@pytest.fixture
def app(make_jobs):
    """An app with PAD's routes, and a front end that only looks like vLLM's."""
    server = Server()
    adapters = SimpleNamespace(load=lambda engine, name, folder: server.load(name, folder))
    return front_end_app(adapters=adapters, jobs=make_jobs())


def test_a_job_is_started_and_followed_over_http(app):
    with TestClient(app) as client:
        body = {"name": "pirate", "sentence": "Answer like a pirate."}
        started = client.post("/v1/pad/jobs", json=body)
        assert started.status_code == 202
        job = started.json()
        while job["state"] == "running":
            time.sleep(0.02)
            job = client.get(f"/v1/pad/jobs/{job['job']}").json()

        assert (job["state"], job["progress"], job["adapter"]) == ("done", 1, "with-pirate")
        known = client.get("/v1/pad/jobs").json()["jobs"]
        assert [one["job"] for one in known] == [job["job"]]


def test_a_second_job_and_bad_bodies_are_refused_over_http(app):
    with TestClient(app) as client:

        def post(**body):
            return client.post("/v1/pad/jobs", json=body)

        assert post(name="pirate", sentence="Answer like a pirate.").status_code == 202
        busy = post(name="poetic", sentence="Answer in verse.")
        assert busy.status_code == 409
        assert "one at a time" in busy.json()["error"]["message"]
        assert post(name="a b", sentence="Answer in verse.").status_code == 400
        assert post(name="poetic").status_code == 400
        assert post(name="poetic", sentence="x", more=1).status_code == 400
        assert post(name=["poetic"], sentence="x").status_code == 400
        assert post(name="poetic", sentence="x" * 2_000_000).status_code == 413
        assert client.get("/v1/pad/jobs/none").status_code == 404
        plain = client.post("/v1/pad/jobs", content='{"name": "a", "sentence": "b"}')
        assert plain.status_code == 400  # what a form of another site could send
        while client.get("/v1/pad/jobs").json()["jobs"][0]["state"] == "running":
            time.sleep(0.02)


def test_a_server_without_jobs_says_how_to_have_them(app):
    app.state.engine_client.input_processor.pad_admission.jobs = None

    for refused in (
        TestClient(app).post("/v1/pad/jobs", json={"name": "a", "sentence": "b"}),
        TestClient(app).get("/v1/pad/jobs"),
    ):
        assert refused.status_code == 404
        assert "pad-vllm play" in refused.json()["error"]["message"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Adapters as a server has them, and as a job made them below `made`."""
    root = tmp_path_factory.mktemp("made")
    base = tiny.checkpoint("llama", root / "base")
    common = {"fork_layer": tiny.config("llama").num_hidden_layers, "std": 0.1}
    tiny.write_adapter(base, root / "served", dimensions=("warm", "brief"), **common)
    tiny.write_adapter(base, root / "forked", fork_layer=2, std=0.1)
    for number, names in enumerate([("warm", "brief", "sly"), ("warm", "brief", "sly", "calm")]):
        folder = root / "made" / f"{number}-{names[-1]}" / "merged"
        folder.parent.mkdir(parents=True)
        tiny.write_adapter(base, folder, dimensions=names, **common)
        os.utime(folder / "pad_config.json", (number, number))
    return root


def jobs_of(folders, monkeypatch, environment="True", **settings):
    monkeypatch.setenv(RUNTIME_ADAPTERS, environment)
    given = {"adapter": str(folders / "served"), "adapter_root": str(folders / "made")}
    config = SimpleNamespace(
        model_config=SimpleNamespace(model="base"), device_config=SimpleNamespace(device_type="cpu")
    )
    pad = PADConfig(**{**given, "dimension_jobs": True, **settings})
    return make_dimension_jobs(config, pad)


def test_a_server_goes_on_from_the_latest_adapter_that_a_job_made(folders, monkeypatch):
    from pad_vllm.adapter.manifest import read_config

    made = latest_made_adapter(folders / "made", read_config(folders / "served"))
    assert made is not None
    assert made.name == "with-calm"
    jobs = jobs_of(folders, monkeypatch, adapters={made.name: str(made.folder)})
    with pytest.raises(ValueError, match="there is a dimension calm already"):
        jobs.start("calm", SENTENCE, None)
    assert latest_made_adapter(folders / "none", read_config(folders / "served")) is None


def test_without_dimension_jobs_a_server_has_none(folders, monkeypatch):
    assert jobs_of(folders, monkeypatch, dimension_jobs=False) is None


@pytest.mark.parametrize(
    ("settings", "environment", "missing"),
    [
        ({"adapter_root": ""}, "True", "there is no adapter_root"),
        ({"engine": "resident"}, "True", "heads only on the shared engine"),
        ({"adapter": "forked"}, "True", "heads only on the shared engine"),
        ({}, "0", f"{RUNTIME_ADAPTERS} is not True"),
    ],
)
def test_jobs_that_could_serve_nothing_are_refused_before_the_server_starts(
    folders, monkeypatch, settings, environment, missing
):
    if "adapter" in settings:
        settings = {"adapter": str(folders / settings["adapter"])}
    with pytest.raises(ValueError, match=missing):
        jobs_of(folders, monkeypatch, environment, **settings)
