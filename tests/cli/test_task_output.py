from __future__ import annotations

import io
import sys
import time

from tfjob.cli.task_output import TaskOutput
from tfjob.runs.follow import Chunk


class Bench:
    """The output of two tasks, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.out = io.BytesIO()
        self.output = TaskOutput(["a", "b"], self.out, sys.stdout, lambda: self.now)

    def write(self, data: bytes, *, task: str = "a", after_s: float = 0) -> list[bytes]:
        self.now += after_s
        self.output.write(Chunk(task, data))
        return self.lines()

    def lines(self) -> list[bytes]:
        return self.out.getvalue().splitlines()


def test_a_progress_bar_shows_every_two_seconds_and_once_when_it_ends() -> None:
    bench = Bench()
    assert bench.write(b"10%\r") == []
    assert bench.write(b"20%\r", after_s=1) == []
    assert bench.write(b"30%\r", after_s=1.1) == [b"a | 30%"]
    assert bench.write(b"40%\r", after_s=1.9) == [b"a | 30%"]
    bench.now += 0.1
    bench.output.refresh()  # nothing came, and the two seconds are over
    assert bench.lines() == [b"a | 30%", b"a | 40%"]
    bench.now += 10
    bench.output.refresh()  # nothing changed
    assert bench.write(b"\n") == [b"a | 30%", b"a | 40%"]
    assert bench.write(b"next\n")[2:] == [b"a | next"]


def test_a_bar_that_returns_first_shows_what_it_wrote_last() -> None:
    bench = Bench()
    bench.write(b"\r 1/10")
    assert bench.write(b"\r 2/10", after_s=2) == [b"a |  2/10"]
    assert bench.write(b"\r10/10\n") == [b"a |  2/10", b"a | 10/10"]


def test_a_line_that_has_not_ended_waits_if_nothing_is_written_over() -> None:
    bench = Bench()
    assert bench.write(b"half") == []
    assert bench.write(b"y\n", task="b", after_s=60) == [b"b | y"]
    bench.output.close()
    assert bench.lines() == [b"b | y", b"a | half"]


def test_carriage_returns_cut_by_pieces_leave_what_a_terminal_would_show() -> None:
    for data in (b"x\r\n", b"1\r2\r\r\n", b"\r\rabc\rde\r\n", b"\r\n", b"\n", b"a\rb\nc\rd\n\r1"):
        whole = Bench()
        whole.write(data)
        whole.output.close()
        cut = Bench()
        for number in range(len(data)):
            cut.write(data[number : number + 1])
        cut.output.close()
        assert cut.lines() == whole.lines()


def test_nul_bytes_are_dropped_from_marked_lines() -> None:
    bench = Bench()
    assert bench.write(b"\0\0one\0\nt\0wo\n\0") == [b"a | one", b"a | two"]
    bench.output.close()
    assert bench.lines() == [b"a | one", b"a | two"]


def test_of_an_endless_line_a_mebibyte_is_held_and_the_rest_is_written_in_pieces() -> None:
    bench = Bench()
    piece = b"x" * 100_000
    for _ in range(25):
        bench.write(piece)
    assert [len(line) for line in bench.lines()] == [1_100_004, 1_100_004]
    bench.write(b"\nnext\n")
    assert [len(line) for line in bench.lines()] == [1_100_004, 1_100_004, 300_004, 8]


def test_a_line_that_ends_just_where_it_was_cut_leaves_no_empty_one() -> None:
    bench = Bench()
    bench.write(b"x" * (1 << 20) + b"y")
    assert len(bench.write(b"\n")) == 1


def test_a_long_line_in_many_pieces_takes_no_time() -> None:
    def taken_s(count: int) -> float:
        bench, began = Bench(), time.process_time()
        for _ in range(count):
            bench.write(b"0123456789")
        bench.write(b"\n")
        return time.process_time() - began

    taken_s(1000)
    assert taken_s(80_000) < 16 * taken_s(10_000) + 0.2
