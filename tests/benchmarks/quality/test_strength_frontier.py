"""Points of strength, candidates and guard, and their means."""

from types import SimpleNamespace

import pytest

from benchmarks.quality.strength_frontier import GridPoint, mean_rows, table, tried_points


def config(prefixes=None):
    taught = [
        {"dimension": "warm", "sentences": ["Be warm."]},
        {"dimension": "dry", "sentences": ["Be dry."]},
    ]
    return SimpleNamespace(
        dimensions=("warm", "dry"), training={"taught": taught, "sections": []}, prefixes=prefixes
    )


def row(dimension, kind, way, perplexity):
    return {
        "dimension": dimension,
        "kind": kind,
        "beta": 1.0,
        "top_k": 20,
        "min_p": 0.03,
        "way": [way, 0, 1],
        "perplexity": perplexity,
        "repeated": 0.0,
        "derailed": 0.0,
    }


def test_a_point_is_its_four_parts():
    assert GridPoint.parse("prefix:1.5:20:0.03") == GridPoint("prefix", 1.5, 20, 0.03)
    with pytest.raises(ValueError, match="accepted kinds are heads, prefix, sentence"):
        GridPoint.parse("tail:1:20:0")


def test_each_kind_asks_in_its_own_way():
    heads = GridPoint("heads", 2.0, 20, 0.03).condition("warm", "Be warm.")
    assert (heads.weights, heads.beta) == ({"warm": 1.0}, 2.0)
    assert heads.request_arguments == {"pad_top_k": 20, "pad_min_p": 0.03}
    asked = GridPoint("prefix", 1.0, 100, 0.0).condition("warm", "Be warm.").request_arguments
    assert (asked["pad_preference"], asked["pad_top_k"]) == ("warm", 100)
    asked = GridPoint("sentence", 2.0, 20, 0.03).condition("warm", "Be warm.").request_arguments
    assert asked["pad_preference"] == "Be warm."


def test_only_prefixes_that_are_there_are_tried(monkeypatch):
    grid = [GridPoint("prefix", 1.0, 20, 0.0), GridPoint("heads", 1.0, 20, 0.0)]
    monkeypatch.setattr(
        "benchmarks.quality.strength_frontier.instructions_of",
        lambda _: {"warm": "Be warm.", "dry": "Be dry."},
    )
    found = tried_points(config(SimpleNamespace(digests={"warm": "0"})), grid)
    assert [(r["dimension"], r["kind"]) for r, _ in found] == [
        ("warm", "prefix"),
        ("warm", "heads"),
        ("dry", "heads"),
    ]


def test_means_are_over_the_dimensions_and_relative_to_asking():
    rows = [
        row("warm", "told", 1.0, 2.0),
        row("dry", "told", 1.0, 1.0),
        row("warm", "heads", 0.6, 2.0),
        row("dry", "heads", 0.8, 1.21),
    ]
    (mean,) = mean_rows(rows)
    assert (mean["way"], mean["least_way"], mean["over_told"]) == (0.7, 0.6, 1.1)
    assert len(table([mean])) == 3
