"""Whether the answers of method `scores` are the base's own, and at which temperature it drew them.

In: records, of which those of `pad-vllm sample` say how they were drawn, and the fingerprint of the base that
is trained. Out: the temperature and remarks for the log; a ValueError for answers of another model or of
guidance. The credit of a token is what it was worth in the base's own draw.
"""

from __future__ import annotations

from collections.abc import Sequence

from pad_vllm.training.data.preference_record import PreferenceRecord
from pad_vllm.wording import listed

_WAY_OUT = (
    "Draw and score answers of this base (`pad-vllm sample`, `pad-vllm score`), or use --teacher pairs, "
    "which learns from anyone's answers"
)


def require_unguided(records: Sequence[PreferenceRecord]) -> None:
    """Raise ValueError for guided responses."""
    guided = sum(bool(response.guided_by) for record in records for response in record.responses)
    if guided:
        raise ValueError(
            f"{guided} responses were drawn under guidance; --teacher scores accepts the base's own. Leave "
            "their files out, or use --teacher pairs"
        )


def drawn_temperature(
    records: Sequence[PreferenceRecord], fingerprint: str | None, recipe_temperature: float
) -> tuple[float, list[str]]:
    """The temperature at which the records' answers were drawn, and what the log says of it.

    Args:
        records: of all sources.
        fingerprint: of the base that is trained; None: unknown.
        recipe_temperature: for records that do not say theirs.

    Raises:
        ValueError: answers that another model drew, or answers of several temperatures.
    """
    drawings = [record.drawn_by for record in records if record.drawn_by is not None]
    foreign = [d for d in drawings if fingerprint and d.fingerprint not in (None, fingerprint)]
    if foreign:
        raise ValueError(
            f"the answers of {len(foreign)} of {len(records)} records were drawn by another model than the "
            f"base ({foreign[0].base}, {foreign[0].fingerprint}; the base is {fingerprint}): --teacher "
            f"scores accepts the base's own. {_WAY_OUT}. If it is the same model, saved otherwise, take "
            "`drawn_by` out of the lines"
        )
    temperatures = sorted({drawing.temperature for drawing in drawings})
    if len(temperatures) > 1:
        raise ValueError(
            f"the answers were drawn at the temperatures {listed(f'{t:g}' for t in temperatures)}; --teacher "
            "scores accepts one. Give the files of one of them"
        )
    remarks = []
    unknown = sum(d.fingerprint is None for d in drawings) + len(records) - len(drawings)
    if unknown and fingerprint:
        remarks.append(
            f"WARNING: {unknown} of {len(records)} records do not say which weights drew their answers; they "
            "are taken as this base's own"
        )
    temperature = temperatures[0] if temperatures else recipe_temperature
    if not drawings:
        remarks.append(
            "WARNING: no record says at which temperature its answers were drawn; "
            f"{temperature:g} is assumed (--recipe temperature=...)"
        )
    elif temperature != recipe_temperature:
        remarks.append(f"temperature {temperature:g}, at which the answers were drawn")
    return temperature, remarks
