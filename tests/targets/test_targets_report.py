"""What follows from what was found of nodes; and how far a clock is off, from answers in whole seconds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfjob.targets.clock import Skew, measure_skew
from tfjob.targets.peers import Peer
from tfjob.targets.report import NodeReport, with_notes
from tfjob.targets.target import Gpu

FINE = NodeReport(
    "a",
    "ssh://a",
    "10.0.0.1",
    version="24.0.7",
    architecture="x86_64",
    gpus=(Gpu(0, "GPU-a"), Gpu(1, "GPU-b")),
    driver="535",
    disk_free_bytes=100 << 30,
    clock=Skew(0.05, 0.1),
    peers=(Peer("b", "10.0.0.2", reached=True),),
)


def notes(report: NodeReport, *others: NodeReport) -> list[tuple[str, str]]:
    return [(note.severity, note.message) for note in with_notes((report, *others))[0].notes]


def test_of_a_node_that_is_fine_there_is_nothing_to_say() -> None:
    assert notes(FINE) == []
    assert with_notes((FINE,))[0].is_usable


@pytest.mark.parametrize(
    ("found", "severity", "expected"),
    [
        ({"version": "19.03.5"}, "error", "its Docker Engine is 19.03.5; 20.10 or later is needed"),
        ({"security": ("rootless",)}, "warning", "its engine is rootless"),
        ({"security": ("userns",)}, "note", "userns-remap"),
        ({"engine": "tcp://10.0.0.1:2375"}, "warning", "has no TLS: whoever reaches that port is root there"),
        ({"declared_gpus": 4}, "error", "the target declares 4 GPUs there, and it has 2"),
        ({"declared_gpus": 1}, "note", "it has 2 GPUs, of which the target declares 1"),
        ({"gpu_refusal": "no driver"}, "error", "its engine gives no GPUs to containers: no driver"),
        ({"gpus": (), "gpu_note": "No driver."}, "note", "No driver."),
        ({"disk_free_bytes": 2 << 30}, "warning", "its engine has 2.0 GiB of disk left"),
        ({"disk_free_bytes": None}, "note", "how much disk its engine has left was not found out"),
        ({"clock": Skew(-7.0, 0.2)}, "warning", "its clock is 7.0 s behind this machine's"),
        ({"clock": Skew(7.0, 0.2)}, "warning", "its clock is 7.0 s ahead of this machine's"),
        ({"peers": (Peer("b", "b", reached=False, note="no answer"),)}, "error", "it does not reach b at b: no answer"),
        (
            {"peers": (Peer("b", "b", reached=None, note="b: why"),)},
            "note",
            "whether it reaches b was not checked: b: why",
        ),
        ({"unanswered": ("nobody answers", "Start it.")}, "error", "nobody answers"),
    ],
)
def test_what_is_wrong_is_told(found: dict[str, object], severity: str, expected: str) -> None:
    report = replace(FINE, **found)  # type: ignore[arg-type]  # each is a field with its value
    ((told, message),) = notes(report)
    assert told == severity
    assert expected in message
    assert with_notes((report,))[0].is_usable == (severity != "error")


def test_a_rootless_engine_is_an_error_where_there_are_others() -> None:
    assert notes(replace(FINE, security=("rootless",)), FINE)[0][0] == "error"


def test_a_machine_of_another_kind_is_told() -> None:
    arm = replace(FINE, architecture="aarch64")
    assert notes(arm, FINE, FINE) == [
        ("warning", "it is aarch64, and most of the others are x86_64: an image is for one of the two")
    ]
    assert notes(FINE, arm, FINE) == []


def test_a_port_of_this_machine_needs_no_tls() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert notes(replace(FINE, engine=f"tcp://{host}:2375")) == []


def test_a_clock_within_what_can_be_measured_is_fine() -> None:
    assert notes(replace(FINE, clock=Skew(1.4, 0.5))) == []


@given(
    ahead_s=st.floats(-1e6, 1e6),
    start=st.floats(1e9, 2e9),
    delays=st.lists(st.floats(0.0001, 0.5), min_size=12, max_size=12),
)
def test_the_skew_is_within_its_error(ahead_s: float, start: float, delays: list[float]) -> None:
    clock = {"now": start}
    waits = iter(delays)

    def their_time() -> float:
        clock["now"] += next(waits)
        told = math.floor(clock["now"] + ahead_s)
        clock["now"] += next(waits)
        return float(told)

    def pause(seconds: float) -> None:
        clock["now"] += seconds

    found = measure_skew(their_time, now=lambda: clock["now"], pause=pause)
    assert abs(found.seconds - ahead_s) <= found.error_s + 0.02  # both are rounded to 0.01
    assert found.error_s <= 1.5


def test_a_clock_that_is_set_meanwhile_gives_an_answer_all_the_same() -> None:
    moments = iter(range(100))
    told = iter([10.0, 10.0, 500.0, 500.0, 500.0, 500.0])
    found = measure_skew(lambda: next(told), now=lambda: float(next(moments)), pause=lambda _: None)
    assert found.error_s > 100
