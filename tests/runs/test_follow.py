from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engines.engine_bench import plan, task
from hypothesis import given, settings
from hypothesis import strategies as st

from tfjob.errors import Interrupted
from tfjob.rundir import RunDirectory
from tfjob.runs.attempts import put_away
from tfjob.runs.events import EventReader, append_event
from tfjob.runs.find import try_recover
from tfjob.runs.follow import Chunk, OutputReader, follow, tail_offsets
from tfjob.runs.record import Record
from tfjob.runs.tail import last_lines


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "job-1")
    directory.logs.mkdir(parents=True)
    return directory


def test_events_are_read_once_and_whole(run: RunDirectory) -> None:
    reader = EventReader(run.events)
    assert reader.read() == []
    append_event(run, "phase", phase="Running")
    with run.events.open("a") as file:
        file.write('{"time": "now", "ev')
    assert [event["phase"] for event in reader.read()] == ["Running"]
    with run.events.open("a") as file:
        file.write('ent": "note"}\n')
    assert reader.read() == [{"time": "now", "event": "note"}]
    assert reader.read() == []


def test_a_line_a_full_disk_cut_is_passed_over(run: RunDirectory) -> None:
    run.events.write_text('{"event": "pha\n{"event": "note"}\n')
    assert EventReader(run.events).read() == [{"event": "note"}]


def test_output_is_read_from_where_it_was_left_in_task_order(run: RunDirectory) -> None:
    for name in ("worker-10", "worker-2", "chief-0"):
        run.log(name).write_text(f"{name}\n")
    run.environment_log.write_text("not a task\n")
    offsets: dict[str, int] = {}
    reader = OutputReader(run, None, offsets)
    assert [chunk.task for chunk in reader.read()] == ["chief-0", "worker-2", "worker-10"]
    assert list(reader.read()) == []
    with run.log("chief-0").open("a") as file:
        file.write("more\n")
    assert [chunk.data for chunk in OutputReader(run, ["chief-0"], offsets).read()] == [b"more\n"]


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=5), max_size=12),
    st.integers(1, 15),
)
def test_a_tail_is_the_last_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("tail"))
    run.logs.mkdir()
    text = "".join(f"{line}\n" for line in lines)
    run.log("main").write_bytes(text.encode())
    offset = tail_offsets(run, ["main"], count)["main"]
    assert run.log("main").read_bytes()[offset:] == "".join(f"{line}\n" for line in lines[-count:]).encode()


def test_last_lines_of_a_long_log_with_progress_bars(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 200_000 + b"\nfirst\n10%\r50%\r100%\nend without newline")
    assert last_lines(log, 3) == ("first", "100%", "end without newline")
    assert last_lines(tmp_path / "missing") == ()


def test_a_line_of_the_failures_tail_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"ok\n\xff\xfe broken\n")
    assert json.dumps(last_lines(log)) == '["ok", "\\ufffd\\ufffd broken"]'


def test_last_lines_are_found_however_long_they_are(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{number} " + "é" * 1_900 + "\n" for number in range(40)))
    assert [line.split()[0] for line in last_lines(log)] == [str(number) for number in range(20, 40)]
    assert all(len(line) == 1_903 for line in last_lines(log))


@pytest.mark.parametrize("size", [10_001, 70_000, 6_000_000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_of_an_over_long_line_its_end_is_told(tmp_path: Path, size: int, end: str) -> None:
    log = tmp_path / "log"
    log.write_text("before\n" + "x" * size + "the reason" + end)
    line = last_lines(log)[-1]
    assert len(line) == 2_000
    assert line.startswith("…x")
    assert line.endswith("xthe reason")
    log.write_text("x" * size + "the reason" + end)
    assert last_lines(log) == (line,)


def test_of_a_log_of_any_size_little_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(2**40)  # a hole
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    assert last_lines(log, 1) == ("the end",)
    assert last_lines(log, 2)[1] == "the end"


def test_a_line_that_begins_in_the_block_before_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first, second = "begin" + "a" * 1_500, "b" * (64 * 1024 - 700)
    log.write_text(f"before\n{first}\n{second}\n")
    assert last_lines(log, 2)[0] == first


STEPS = st.lists(st.sampled_from(["write a-0", "write a-1", "put away", "read", "read", "build"]), max_size=30)


@settings(deadline=None)  # it writes files
@given(STEPS, st.booleans())
def test_over_attempts_no_byte_is_lost_or_read_twice(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], builds: bool
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("attempts"))
    run.logs.mkdir()
    planned = plan(task("true", name="a-0"), task("true", name="a-1"))
    reader = OutputReader(run, None, build=builds)
    attempt, written, read = (
        1,
        {"a-0": b"", "a-1": b"", "environment": b""},
        {"a-0": b"", "a-1": b"", "environment": b""},
    )
    for number, step in enumerate([*steps, "read"]):
        if step == "put away":
            put_away(planned, run, run.path, attempt)
            attempt += 1
        elif step == "read":
            for chunk in reader.read():
                read[chunk.task] += chunk.data
        else:
            name = "environment" if step == "build" else step.split()[1]
            data = f"{attempt}.{number}\n".encode()
            with run.log(name).open("ab") as file:
                file.write(data)
            written[name] += data
    assert read == {**written, **({} if builds else {"environment": b""})}


def test_output_of_an_attempt_comes_before_the_word_that_it_failed_and_that_of_the_next_after_it(
    run: RunDirectory,
) -> None:
    planned = plan(task("true"))
    for number in (1, 2):
        run.log("main").write_text(f"{number}\n")
        if number == 1:
            for _ in range(2):  # a supervisor that took over tells it again
                append_event(run, "retry", attempt=1, message="m")
            put_away(planned, run, run.path, 1)
    append_event(run, "phase", phase="Finalizing")
    append_event(run, "state", state="Completed")
    items = [item.data if isinstance(item, Chunk) else item["event"] for item in follow(run) if item is not None]
    assert items == [b"1\n", "retry", b"2\n", "phase", "state"]
    items = [item.data if isinstance(item, Chunk) else item["event"] for item in follow(run, attempt=2) if item]
    assert items == [b"2\n", "phase", "state"]


def test_the_log_that_a_reader_has_just_opened_may_be_put_away(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(task("true"))
    run.log("main").write_text("first\n")
    reader = OutputReader(run)
    opened = Path.open

    def open_late(path: Path, *arguments: Any, **keys: Any) -> Any:
        if not run.attempt_logs(1).exists():
            put_away(planned, run, run.path, 1)
            run.log("main").write_text("second\n")
        return opened(path, *arguments, **keys)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", open_late)
        found = [chunk.data for chunk in reader.read()]
    assert found == [b"first\n", b"second\n"]


def test_output_comes_after_what_happened_before_it(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a short run may happen between a look at its events and one at its output."""
    read = EventReader.read

    def late(self: EventReader) -> list[dict[str, Any]]:
        found = read(self)
        if not run.log("main").exists():
            append_event(run, "phase", phase="Running")
            run.log("main").write_text("hello\n")
            append_event(run, "phase", phase="Finalizing")
            append_event(run, "state", state="Completed")
        return found

    monkeypatch.setattr(EventReader, "read", late)
    items = [item for item in follow(run) if item is not None]
    assert [item.data if isinstance(item, Chunk) else item.get("phase", item["event"]) for item in items] == [
        *("Running", b"hello\n", "Finalizing", "state")
    ]


def test_an_interrupt_is_not_taken_for_a_run_that_cannot_be_recovered(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bool:
        raise Interrupted("interrupted")

    monkeypatch.setattr("tfjob.runs.starting.recover", interrupted)
    with pytest.raises(Interrupted):
        try_recover(run, Record("job-1", "job", "tf", "Running", "2026-01-31T12:00:00.000Z", str(run.path), "local"))
