"""Times of the parts of a guided step, from the profiler's events."""

from __future__ import annotations

from types import SimpleNamespace

from benchmarks.speed import step_profile


def event(key, host, device, own=0, count=1, where="DeviceType.CPU"):
    return SimpleNamespace(
        key=key,
        cpu_time_total=host,
        device_time_total=device,
        self_device_time_total=own,
        count=count,
        device_type=where,
    )


def test_parts_have_host_and_device_time_and_kernels_their_own():
    seen = [
        event("pad: rewards", 4000, 800),
        event("pad: rewards", 0, 800, where="DeviceType.CUDA"),  # the same range on the device
        event("aten::add", 100, 100),
        event("gemm", 0, 0, own=2000, count=6, where="DeviceType.CUDA"),
        event("topk", 0, 0, own=4000, count=2, where="DeviceType.CUDA"),
    ]
    found = step_profile.summarize_events(seen, 2, ["candidates", "rewards"])
    assert found == {
        "parts": {"rewards": {"host": 2.0, "device": 0.4}},
        "device": 3.0,
        "kernels": [
            {"name": "topk", "ms": 2.0, "count": 2},
            {"name": "gemm", "ms": 1.0, "count": 6},
        ],
    }
    assert step_profile.table(found)[2] == "| rewards | 2.000 | 0.400 |"
