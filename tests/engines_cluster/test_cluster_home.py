"""How what nodes send is merged into one run directory."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tfjob.engines.cluster.home import Home
from tfjob.rundir import RunDirectory

NAMES = ("chief", "worker-0", "worker-1")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory(tmp_path / "runs" / "a-run")
    for directory in (found.outputs, found.user_logs, found.path / "tasks"):
        directory.mkdir(parents=True)
    return found


@pytest.fixture
def home(run: RunDirectory) -> Home:
    return Home.of(run, NAMES)


def send(home: Home, node: int, path: str, text: str, **more: Any) -> bool:
    data = text.encode()
    header = {"path": path, "size": len(data), "mode": 0o644, "mtime_ns": 10**18, "last": True, "whole": True, **more}
    return home.part(node, header, data)


def outputs(home: Home) -> dict[str, str]:
    top = home.run.outputs
    files = [path for path in top.rglob("*") if path.is_file()]
    return {path.relative_to(top).as_posix(): path.read_text() for path in files}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_the_first_task_has_the_name_whoever_comes_first(home: Home, order: tuple[int, ...]) -> None:
    for node in order:
        send(home, node, "outputs/a/model", f"of {node}")
    assert outputs(home) == {"a/model": "of 0", "a/model.worker-0": "of 1", "a/model.worker-1": "of 2"}
    (note,) = home.notes()
    assert "outputs/a/model (worker-0, worker-1)" in note


def test_what_is_alike_is_there_once(home: Home) -> None:
    for node in (2, 0, 1):
        send(home, node, "outputs/alike", "same")
    assert outputs(home) == {"alike": "same"}
    assert home.notes() == ()


def test_what_a_node_sends_again_replaces_its_own(home: Home) -> None:
    for step in range(3):
        for node in (0, 1):
            send(home, node, "outputs/step", f"{step} of {node}")
    assert outputs(home) == {"step": "2 of 0", "step.worker-0": "2 of 1"}


def test_what_is_gone_takes_only_its_own_away(home: Home) -> None:
    for node in (0, 1):
        send(home, node, "outputs/x", str(node))
    home.gone(2, "outputs/x")
    home.gone(1, "outputs/x")
    assert outputs(home) == {"x": "0"}
    assert home.notes() == ()
    home.gone(0, "outputs/x")
    assert outputs(home) == {}


def test_another_supervisor_knows_whose_is_whose(home: Home, run: RunDirectory) -> None:
    send(home, 0, "outputs/x", "0")
    (run.path / ".home-1-99").write_text("of a supervisor that was killed")
    after = Home.of(run, NAMES)  # without `close`: it was killed
    send(after, 1, "outputs/x", "1")
    assert outputs(after) == {"x": "0", "x.worker-0": "1"}
    assert not (run.path / ".home-1-99").exists()


class TestAnotherAttempt:
    @pytest.fixture
    def again(self, home: Home, run: RunDirectory) -> Home:
        """The second attempt's, after a first in which the chief and worker-0 wrote."""
        send(home, 0, "outputs/x", "1st of 0")
        send(home, 1, "outputs/y", "1st of 1")
        home.close()
        (run.attempts / "1").mkdir(parents=True)
        return Home.of(run, NAMES)

    def test_who_writes_what_the_first_left_has_it(self, again: Home, run: RunDirectory) -> None:
        send(again, 2, "outputs/x", "2nd of 2")
        send(again, 0, "outputs/y", "2nd of 0")
        assert outputs(again) == {"x": "2nd of 2", "y": "2nd of 0"}
        assert again.notes() == ()
        again.save()
        after = Home.of(run, NAMES)  # another supervisor's
        send(after, 1, "outputs/y", "2nd of 1")
        assert outputs(after) == {"x": "2nd of 2", "y": "2nd of 0", "y.worker-0": "2nd of 1"}

    def test_who_wrote_it_may_remove_it(self, again: Home) -> None:
        again.gone(1, "outputs/x")
        assert outputs(again) == {"x": "1st of 0", "y": "1st of 1"}
        again.gone(0, "outputs/x")
        assert outputs(again) == {"y": "1st of 1"}

    def test_a_log_begins_anew(self, home: Home, run: RunDirectory) -> None:
        home.log(1, "logs/user/events", 0, b"of the first attempt")
        home.close()
        (run.attempts / "1").mkdir(parents=True)
        again = Home.of(run, NAMES)
        assert again.sizes(1, ["worker-0"]) == {}
        for offset, data in ((0, b"one "), (4, b"two")):
            again.log(1, "logs/user/events", offset, data)
        assert (run.user_logs / "events").read_bytes() == b"one two"


class TestParts:
    def test_a_file_gets_its_name_when_it_is_whole(self, home: Home) -> None:
        assert not send(home, 0, "outputs/x", "ab", last=False, size=4)
        assert outputs(home) == {}
        assert send(home, 0, "outputs/x", "cd", size=4)
        assert outputs(home) == {"x": "abcd"}
        assert (home.run.outputs / "x").stat().st_mtime_ns == 10**18

    def test_one_that_changed_meanwhile_is_none(self, home: Home) -> None:
        assert not send(home, 0, "outputs/x", "ab", whole=False)
        assert not send(home, 0, "outputs/x", "ab", size=3)
        assert outputs(home) == {}
        assert list(home.run.path.glob(".home-*")) == []

    def test_after_a_broken_connection_it_begins_anew(self, home: Home) -> None:
        send(home, 0, "outputs/x", "ab", last=False, size=4)
        home.begin(0)
        assert list(home.run.path.glob(".home-*")) == []
        send(home, 0, "outputs/x", "ab", last=False, size=4)
        send(home, 0, "outputs/x", "cd", size=4)
        assert outputs(home) == {"x": "abcd"}

    def test_what_can_not_be_kept_is_told_and_ends_nothing(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", full)
            assert not send(home, 1, "outputs/x", "ab")
        assert list(home.run.path.glob(".home-*")) == []
        assert send(home, 1, "outputs/y", "cd")
        assert home.notes() == (
            "files of nodes could not be kept here: outputs/x of worker-0 (No space left on device)",
        )
        assert send(home, 1, "outputs/x", "ab")
        assert home.notes() == ()

    def test_what_room_would_not_help_is_told_and_not_tried_again(self, home: Home) -> None:
        long = "n" * 250  # with the name of the task at its end it is none
        for node in (0, 1):
            assert send(home, node, f"outputs/{long}", str(node)) == (node == 0)
            assert home.log(node, f"logs/user/{long}", 0, str(node).encode()) == (node == 0)
        assert not home.log(1, f"logs/user/{long}", 1, b"more")
        assert not home.is_blocked(1)
        (_, note) = home.notes()
        assert note.count("of worker-0 (File name too long)") == 2

    def test_what_comes_in_part_is_known(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        send(home, 0, "outputs/x", "ab", last=False, size=4)
        assert home.is_receiving(0)
        assert not home.is_receiving(1)
        with monkeypatch.context() as patch:
            patch.setattr(Home, "_part", Mock(side_effect=OSError(28, "No space left on device")))
            send(home, 0, "outputs/x", "c", last=False, size=4)
        assert not home.is_receiving(0)  # the rest of it is not kept


class TestWhileFilesAreCompared:
    def compared(self, home: Home, do: Callable[[], object], times: int = 1) -> bool:
        """Node 1 sends what node 0 has; another thread does something before they are found to be alike."""

        todo = [do] * times

        def going() -> None:
            if todo:
                other = threading.Thread(target=todo.pop())
                other.start()
                other.join(60)
                assert not other.is_alive()

        assert send(home, 0, "outputs/x", "same")
        header = {"path": "outputs/x", "size": 4, "mode": 0o644, "mtime_ns": 10**18, "last": True, "whole": True}
        return home.part(1, header, b"same", going)

    def test_other_nodes_are_heard(self, home: Home) -> None:
        assert self.compared(home, lambda: home.log(2, "logs/worker-1.log", 0, b"heard"))
        assert (home.run.path / "logs/worker-1.log").read_bytes() == b"heard"
        assert outputs(home) == {"x": "same"}

    def test_another_file_may_come(self, home: Home) -> None:
        assert self.compared(home, lambda: send(home, 0, "outputs/x", "else"))
        assert outputs(home) == {"x": "else", "x.worker-0": "same"}

    def test_others_may_come_again_and_again(self, home: Home) -> None:
        assert self.compared(home, lambda: send(home, 0, "outputs/x", "same"), 2)
        assert outputs(home) == {"x": "same"}
        assert self.compared(home, lambda: send(home, 0, "outputs/x", "same"), 1000)
        assert outputs(home) == {"x": "same", "x.worker-0": "same"}

    def test_it_may_be_removed(self, home: Home) -> None:
        assert self.compared(home, lambda: home.gone(0, "outputs/x"))
        assert outputs(home) == {"x": "same"}
        home.gone(1, "outputs/x")  # it is its own now
        assert outputs(home) == {}

    def test_all_may_end(self, home: Home) -> None:
        assert not self.compared(home, home.close)
        assert outputs(home) == {"x": "same"}
        assert list(home.run.path.glob(".home-*")) == []
        assert home.notes() == ()


class TestFilesAndDirectoriesOfOneName:
    def test_a_directory_where_another_has_a_file(self, home: Home) -> None:
        send(home, 0, "outputs/a", "file")
        assert send(home, 1, "outputs/a/b/c", "below")
        assert outputs(home) == {"a": "file", "a.worker-0/b/c": "below"}
        home.gone(1, "outputs/a/b/c")
        assert outputs(home) == {"a": "file"}

    def test_a_file_where_another_has_a_directory(self, home: Home) -> None:
        send(home, 1, "outputs/a/b", "below")
        assert send(home, 0, "outputs/a", "file")
        assert outputs(home) == {"a/b": "below", "a.chief": "file"}
        home.link(0, "outputs/a", "elsewhere")
        assert outputs(home)["a/b"] == "below"

    def test_a_node_may_make_a_file_of_what_was_a_directory(self, home: Home) -> None:
        send(home, 1, "outputs/a/b/c", "below")
        home.gone(1, "outputs/a/b/c")
        send(home, 1, "outputs/a", "file")
        assert outputs(home) == {"a": "file"}


class TestNoNodeIsTrusted:
    @pytest.mark.parametrize(
        "path",
        ["/etc/passwd", "outputs/../record.json", "record.json", "outputs", "../x", "logs//x", "outputs/a\0b", ""],
    )
    def test_names_that_lead_elsewhere(self, home: Home, path: str) -> None:
        for do in (
            lambda: send(home, 0, path, ""),
            lambda: home.log(0, path, 0, b""),
            lambda: home.link(0, path, "x"),
            lambda: home.directory(path),
            lambda: home.gone(0, path),
        ):
            with pytest.raises(ValueError, match="a node sent"):
                do()

    @pytest.mark.parametrize(("task", "name"), [("..", "x"), ("a/b", "x"), ("a", ".."), ("a", "b/c"), ("", "x")])
    def test_reports_that_are_none(self, home: Home, task: str, name: str) -> None:
        with pytest.raises(ValueError, match="a node sent"):
            home.report(task, name, "")

    def test_no_link_is_followed(self, home: Home, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "file").write_text("mine")
        home.link(0, "outputs/out", str(outside))
        send(home, 1, "outputs/out/file", "stolen")
        home.link(0, "outputs/file", str(outside / "file"))
        send(home, 0, "outputs/file", "stolen")
        home.link(0, "logs/user/log", str(outside / "file"))
        home.log(0, "logs/user/log", 0, b"stolen")
        assert (outside / "file").read_text() == "mine"
        assert [path.name for path in outside.iterdir()] == ["file"]

    def test_nothing_is_taken_after_the_end(self, home: Home) -> None:
        send(home, 0, "outputs/x", "of this attempt")
        send(home, 1, "outputs/y", "half", last=False, size=100)
        home.close()
        assert not send(home, 0, "outputs/x", "late")
        home.log(0, "logs/chief.log", 0, b"late")
        home.report("chief", "exit.json", "late")
        home.link(0, "outputs/link", "late")
        home.directory("outputs/late")
        home.gone(0, "outputs/x")
        assert outputs(home) == {"x": "of this attempt"}
        assert sorted(path.name for path in home.run.path.iterdir()) == ["logs", "merged.json", "outputs", "tasks"]
        assert list((home.run.path / "logs").rglob("*log")) == []
        assert not (home.run.outputs / "late").exists()


def test_a_log_that_comes_twice_is_there_once(home: Home) -> None:
    for offset, data in ((0, b"one\n"), (4, b"two\n"), (0, b"one\ntwo\n"), (8, b"three\n")):
        home.log(1, "logs/worker-0.log", offset, data)
    assert (home.run.path / "logs/worker-0.log").read_bytes() == b"one\ntwo\nthree\n"
    assert home.sizes(1, ["worker-0"]) == {"logs/worker-0.log": 14}


@pytest.mark.root
def test_a_disk_that_is_full_here_loses_neither_logs_nor_ends(run: RunDirectory) -> None:
    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(run.path)], check=True)

    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    try:
        home = Home.of(run, NAMES)
        home.reserve(["chief", "worker-0"])
        (run.path / "logs").mkdir()
        home.log(0, "logs/chief.log", 0, b"x" * 100_000)
        home.log(0, "logs/chief.log", 100_000, b"more")  # which would leave a hole
        home.report("chief", "started.json", "{}")
        home.report("chief", "exit.json", '{"exit_code": 0}')
        assert (run.task("chief") / "exit.json").read_text() == '{"exit_code": 0}'
        there = home.sizes(0, ["chief"])["logs/chief.log"]
        assert 0 < there < 100_000
        assert not home.is_blocked(0)  # it would find no room now
        assert home.notes() == (
            "files of nodes could not be kept here: logs/chief.log of chief (No space left on device)",
        )
        mount("-o", "remount,size=1m")
        assert home.is_blocked(0)
        home.begin(0)
        home.log(0, "logs/chief.log", there, b"x" * (100_000 - there) + b"more")
        assert (run.path / "logs/chief.log").read_bytes() == b"x" * 100_000 + b"more"
        assert home.notes() == ()
        home.close()
        assert [path.name for path in run.tasks.glob("*/.*")] == []
    finally:
        subprocess.run(["umount", "--lazy", run.path], check=False)


@pytest.mark.root
def test_an_output_that_found_no_room_is_sent_again_when_there_is_some(run: RunDirectory) -> None:
    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(run.path)], check=True)

    mount("-t", "tmpfs", "-o", "size=64k", "tmpfs")
    try:
        home = Home.of(run, NAMES)
        run.outputs.mkdir()
        assert not send(home, 1, "outputs/model", "x" * 100_000)
        assert not home.is_blocked(1)  # it would find no room now
        mount("-o", "remount,size=1m")
        assert home.is_blocked(1)
        assert not home.is_blocked(0)
        home.begin(1)
        assert not home.is_blocked(1)
        assert send(home, 1, "outputs/model", "x" * 100_000)
        assert home.notes() == ()
        home.close()
    finally:
        subprocess.run(["umount", "--lazy", run.path], check=False)


def test_logs_of_one_name_stand_beside_each_other(home: Home) -> None:
    for node in (1, 0):
        home.log(node, "logs/user/events", 0, f"of {node}".encode())
    assert (home.run.user_logs / "events").read_text() == "of 0"
    assert (home.run.user_logs / "events.worker-0").read_text() == "of 1"


def test_a_node_begins_again_while_another_sends_new_files(home: Home) -> None:
    (home.run.user_logs / "own").write_text("four")

    class Growing(dict[str, int]):
        """The owners, to which another node adds whenever nobody keeps it from that."""

        def items(self) -> Any:
            for item in super().items():
                other = threading.Thread(target=send, args=(home, 1, f"outputs/new{len(self)}", "x"))
                other.start()
                other.join(0.1)  # it waits if it must
                yield item

    home.whose.owners = Growing({"outputs/x": 1, "outputs/y": 1, "logs/user/own": 0})
    assert home.sizes(0, []) == {"logs/user/own": 4}
