"""PAD's series, as a scraper reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pad_vllm.vllm_api.prometheus_metrics import PADMetrics, pad_metrics


def test_a_scraper_reads_the_counts():
    registry = CollectorRegistry()
    metrics = PADMetrics(registry)
    metrics.count_guided_request()
    metrics.count_refused_request()
    metrics.count_answer_tokens(24, 4)
    metrics.count_answer_tokens(10, None)  # the worker reported no outcome
    metrics.add_worker_counts(
        {"rows": 30, "changed": 7, "seconds": [0.004, 0.2], "failures": {"no room": 4}}
    )
    text = generate_latest(registry).decode()
    read = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert read["pad:requests_guided_total",] == 1
    assert read["pad:requests_refused_total",] == 1
    assert read["pad:tokens_guided_total",] == 20
    assert read["pad:tokens_unknown_total",] == 10
    assert read["pad:tokens_unguided_total",] == 4
    assert read["pad:rows_guided_total",] == 30
    assert read["pad:rows_changed_total",] == 7
    assert read["pad:rows_declined_total", "no room"] == 4
    assert read["pad:reward_seconds_count",] == 2
    assert read["pad:reward_seconds_bucket", "0.005"] == 1


def test_a_process_has_one_set_that_vllm_leaves_alone():
    from vllm.v1.metrics.prometheus import unregister_vllm_metrics

    pad_metrics().count_guided_request()
    unregister_vllm_metrics()
    assert pad_metrics() is pad_metrics()
    from prometheus_client import REGISTRY

    assert b"pad:requests_guided_total" in generate_latest(REGISTRY)


def test_the_dashboard_queries_series_that_exist():
    board = json.loads((Path(__file__).parents[2] / "examples" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    registry = CollectorRegistry()
    metrics = PADMetrics(registry)
    metrics.add_worker_counts({"rows": 0, "changed": 0, "seconds": [], "failures": {"no room": 0}})
    text = generate_latest(registry).decode()
    for name in {name for expr in queries for name in re.findall(r"pad:\w+", expr)}:
        assert name in text
