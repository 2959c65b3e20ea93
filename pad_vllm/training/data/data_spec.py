"""What users write after --data: which source, where it lies, and how often an epoch sees it.

    NAME[:DIMENSION][=PATH][@WEIGHT]     helpsteer2    hh-rlhf:harmless=hh.jsonl.gz@0.5    jsonl=mine.jsonl

In: that text. Out: a `DataSpec`. Reads no file: data_sources.py does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.training.data.dataset_rows import FILE_FORMATS
from pad_vllm.training.data.preference_record import unit_hash
from pad_vllm.training.data.published_dataset_columns import SOURCES
from pad_vllm.wording import did_you_mean, listed

_FORM = "NAME[:DIMENSION][=PATH][@WEIGHT], as in helpsteer2 or hh-rlhf:harmless=hh.jsonl.gz@0.5"


@dataclass(frozen=True)
class DataSpec:
    """One source of preference data, as a user asks for it."""

    name: str
    """A key of SOURCES."""

    dimensions: tuple[str, ...]
    path: Path | None = None
    """A local file or folder; None: the data set on the hub."""

    weight: float = 1.0
    """How often an epoch sees each prompt, on average."""

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Parse NAME[:DIMENSION][=PATH][@WEIGHT]; `ric` takes several dimensions, separated by commas.

        Raises ValueError, which names what is wrong and what is accepted.
        """
        head, has_path, path = text.partition("=")
        weight = "1"
        before, at, after = (path if has_path else head).rpartition("@")
        if at and not has_path:
            head, weight = before, after
        elif at and _float_or_none(after) is not None:  # a path may have an @ of its own
            path, weight = before, after
        name, colon, dimensions = head.partition(":")
        if name not in SOURCES:
            raise ValueError(
                f"data {text!r}: no source is called {name!r}. Accepted: {listed(SOURCES)}; "
                f"write {_FORM}.{did_you_mean(name, SOURCES)}"
            )
        if (has_path and not path) or (not has_path and SOURCES[name].hub_name is None):
            raise ValueError(
                f"data {text!r}: {name} needs a file or folder of {listed(FILE_FORMATS)}; "
                f"write {name}=PATH"
            )
        names = _dimensions(text, name, dimensions) if colon else SOURCES[name].dimensions
        if (
            not has_path
            and SOURCES[name].subfolder_of
            and names[0] not in SOURCES[name].subfolder_of
        ):
            raise ValueError(unknown_subset(name, names[0]))
        return cls(
            name=name,
            dimensions=names,
            path=Path(path).expanduser() if has_path else None,
            weight=_weight(text, weight),
        )

    @property
    def label(self) -> str:
        """The spec without its weight. Records, reports and spreads call the source by it."""
        is_default = self.dimensions == SOURCES[self.name].dimensions
        dimensions = "" if is_default else ":" + ",".join(self.dimensions)
        return f"{self.name}{dimensions}" + ("" if self.path is None else f"={self.path}")


def _dimensions(text: str, source: str, names: str) -> tuple[str, ...]:
    """The dimensions in `names`, which stood after the colon of the spec `text`."""
    dimensions, most = tuple(names.split(",")), SOURCES[source].max_dimension_names
    if not most:
        raise ValueError(
            f"data {text!r}: {source} names its dimensions itself "
            f"({listed(SOURCES[source].dimensions)}); leave :{names} out"
        )
    if (
        len(set(dimensions)) < len(dimensions)
        or len(dimensions) > most
        or not all(map(DIMENSION_NAME.fullmatch, dimensions))
    ):
        raise ValueError(
            f"data {text!r}: {names!r} is not accepted after {source}:, at most {most} different "
            "names of letters, digits, - and _ that begin with a letter are; correct it, or leave "
            f"it out for {listed(SOURCES[source].dimensions)}"
        )
    return dimensions


def unknown_subset(source: str, name: str) -> str:
    """The message for a dimension that the source has no folder of."""
    subfolder_of = SOURCES[source].subfolder_of
    return (
        f"data '{source}:{name}': {source} has no rows of {name!r}. Accepted: {listed(subfolder_of)} "
        f"(its folders {listed(subfolder_of.values())}); for rows of another dimension name their file, "
        f"{source}:{name}=FILE.{did_you_mean(name, subfolder_of)}"
    )


def _weight(text: str, number: str) -> float:
    """The weight in `number`, which stood after the @ of the spec `text`."""
    weight = _float_or_none(number)
    if weight is None or not 0 < weight < math.inf:
        raise ValueError(
            f"data {text!r}: the weight {number!r} must be a finite number above 0 (0.5: half of the "
            "records, 2: each twice); correct it, or leave @ out for 1"
        )
    return weight


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def weight_by_label(specs: Iterable[DataSpec]) -> dict[str, float]:
    """Label -> weight of each spec. Raises ValueError if two specs read the same data."""
    weights: dict[str, float] = {}
    for spec in specs:
        if spec.label in weights:
            raise ValueError(
                f"data {spec.label!r} is given twice; give it once, with a weight: {spec.label}@2"
            )
        weights[spec.label] = spec.weight
    return weights


def repeats_per_epoch(weight: float, prompt_key: str) -> int:
    """How often an epoch sees a prompt: the weight rounded down, or up for its fraction of the keys.

    The hash is salted, so that this choice is independent of the split, which hashes the key alone.
    """
    return math.floor(weight) + (unit_hash(f"weight\0{prompt_key}") < weight - math.floor(weight))
