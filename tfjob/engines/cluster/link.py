"""The connection to one node of a run: a thread that hears what the agent in the run's container there says.

A connection that breaks is made again, and goes on where it was. A node that has said nothing for `lost_s` is lost: its
tasks have ended, as far as the run is concerned, and what it may say later is not heard any more.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.stream import Hijacked
from tfjob.engines.cluster.agent_tasks import REPORTS
from tfjob.engines.cluster.clocks import NodeClock
from tfjob.engines.cluster.container import AGENT, UNPACK, inside
from tfjob.engines.cluster.ended import Ended, end_of
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.messages import messages
from tfjob.engines.cluster.salvage import salvage
from tfjob.errors import TargetError

__all__ = ["NodeLink", "NodeTasks"]

_RETRY_S: Final = 1.0
_CALL_S: Final = 5.0
_QUICK_S: Final = 1.0
_PAUSE_S: Final = 0.05
_SILENT_S: Final = 10.0
_BLOCKED_S: Final = 10.0
"""So long what found no room on the disk here waits for it before it is tried again."""

_LEAVES_S: Final = 30.0
"""So long after the grace of its tasks a container that was told to end has ended: an engine kills it, or the machine goes."""

_VAIN_S: Final = 120.0
"""So long something comes that can't be kept, and nothing else, before the last of a node is not waited for any more."""

_BEGINNINGS: Final = 5
"""So often in turn a connection breaks before anything has come whole until then."""

_COMING: Final = ("link", "directory", "gone", "walking")
"""By these, and by logs and files, a node says what it has, or that it looks for it: whoever waits for the last waits on."""


@dataclass(frozen=True)
class NodeTasks:
    """What is on one node of a run: the container, and the tasks in it (the launcher among them on node 0)."""

    index: int
    name: str
    address: str
    container: str
    tasks: tuple[str, ...]
    keep: tuple[str, ...]
    code: str
    python: str


@dataclass
class NodeLink:
    """Hears and tells one node. Everything it learns is in `home`, or in its fields; none of its calls but `wait_for` waits."""

    api: DockerApi
    node: NodeTasks
    home: Home
    lost_s: float
    merge_interval_s: float
    port_count: int = 0
    ports: list[int] = field(default_factory=list)
    interface: str = ""
    subnet: str = ""
    ended: Ended | None = None
    silent: dict[str, str] = field(default_factory=dict)
    """Tasks that ended without a word, with what is known of them."""

    problems: list[str] = field(default_factory=list)
    looked: float | None = None
    """When the agent last looked at its tasks and had told all it saw, by our clock; an agent of an earlier tfjob does not say it."""

    is_full: bool = False
    """Whether its disk had no room left when its last files were sent."""

    bundle: bytes = b""
    """What the agent makes in its container before it speaks for the first time; see `tfjob.engines.cluster.container`."""

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._said: dict[str, int] = {}
        self._stream: Hijacked | None = None
        self._files: dict[str, list[int]] = {}
        self._closing = False
        self._answers = True
        self._leaving_since: float | None = None
        self._last_sync = False
        self._sent_last = 0.0
        self._kept_last = 0.0
        self._beginnings = 0
        self._kept_at_beginning = 0
        self._heard = time.monotonic()
        self._more = self._heard
        self._pardoned = float("-inf")
        self._writing = threading.Lock()
        self._orders: dict[int, bytes] = {}
        self._clock = NodeClock()
        self._asked: dict[int, float] = {}
        self._begun = time.monotonic()
        self._number = 0
        self._thread = threading.Thread(target=self._live, name=f"link to {self.node.name}", daemon=True)

    def open(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing = True
        stream = self._stream
        if stream is not None:
            stream.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_CALL_S)

    def begin_again(self) -> None:
        """Make the connection anew: what found no room here is sent again from where it ended."""
        stream = self._stream
        if stream is not None:
            stream.close()

    @property
    def closed(self) -> bool:
        """Whether nobody listens any more."""
        return self._closing

    @property
    def silent_s(self) -> float:
        """How long nothing was heard."""
        return time.monotonic() - self._heard

    def mute_s(self, grace_s: float) -> float:
        """How long nothing was heard of its tasks: once its container was told to end, it is waited for that it has ended.

        Its beats do not count until then, but for no longer than its tasks' grace and what follows can take.
        """
        left_s = (
            0.0 if self._leaving_since is None or self.ended is not None else time.monotonic() - self._leaving_since
        )
        return max(self.silent_s, left_s if left_s < grace_s + _LEAVES_S else 0.0)

    @property
    def _left_s(self) -> float:
        """How long it may still be silent before it is lost."""
        return max(self._heard + self.lost_s, self._more) - time.monotonic()

    def tell(self, order: str, **facts: Any) -> None:
        """Tell the agent to do something. An order that it has not done when the connection breaks is told again."""
        with self._changed:
            self._number += 1
            self._last_sync = self._last_sync or order == "sync"
            line = json.dumps({"do": order, "number": self._number, **facts}).encode() + b"\n"
            self._orders[self._number] = line
            self._asked[self._number] = time.time()
            stream = self._stream
        if stream is not None:
            with suppress(OSError), self._writing:  # whoever listens notices, and tells it again
                stream.write(line)

    def said(self, what: str) -> int:
        """How often the agent has said something so far."""
        return self._said.get(what, 0)

    def wait_for(self, what: str, times: int, timeout_s: float) -> bool:
        """Wait until the agent has said something so many times. False when it did not in time, or can't any more.

        While the node sends (it may have much to send) the time does not count, unless it all is in vain.
        """
        begun, beginnings = time.monotonic(), self._beginnings
        with self._changed:
            self._kept_last = begun
            while self._said.get(what, 0) < times:
                if self.ended is not None or time.monotonic() - max(begun, self._sent_last) > timeout_s:
                    return False
                if self._beginnings - max(beginnings, self._kept_at_beginning) > _BEGINNINGS:
                    return False
                self._changed.wait(0.1)
        return True

    # The thread.

    def _live(self) -> None:
        while not self._closing and self.ended is None:
            try:
                if self._answers or self._left_s >= _QUICK_S:  # else there is time for one question only
                    self._session()
            except (OSError, TargetError, RefusalError):
                pass  # it is looked into below
            except Exception as error:  # noqa: BLE001  # whatever it is, the run must not wait for a thread that is gone
                self._end(Ended(f"the agent on {self.node.name} sent what can't be read: {error!r}"))
            if not self._closing and self.ended is None:
                self._check()
        with self._changed:
            self._stream = None
            self._changed.notify_all()

    def _session(self) -> None:
        run = str(inside(self.home.run).path)
        bundle = b"" if self.said("hello") else self.bundle
        unpack = ["-c", UNPACK, str(len(bundle))] if bundle else []
        argv = [
            self.node.python,
            "-I",
            "-S",
            "-X",
            "utf8",
            *unpack,
            AGENT,
            "serve",
            run,
            str(self.port_count),
            self.node.address,
        ]
        self._asked[0] = time.time()
        stream = self.api.execute(self.node.container, argv, timeout_s=min(_SILENT_S, max(self._left_s, _QUICK_S)))
        try:
            self.home.begin(self.node.index)
            self._beginnings += 1
            self._begun = time.monotonic()
            stream.settimeout(min(max(self.lost_s / 2, 3.0), _SILENT_S))
            stream.write(bundle + json.dumps({"do": "have", **self._have()}).encode() + b"\n")
            self._connected(stream)
            for header, data in messages(stream):
                if self._closing:
                    return
                self._heard = time.monotonic()
                self._take(header, data)
                if time.monotonic() - self._begun > _BLOCKED_S and self._may_begin_again():
                    return
        finally:
            self._disconnected()
            stream.close()

    def _may_begin_again(self) -> bool:
        """Whether there is room now for what found none, and beginning again costs neither a file in part nor the end."""
        index = self.node.index
        return not self._last_sync and self.home.is_blocked(index) and not self.home.is_receiving(index)

    def _connected(self, stream: Hijacked) -> None:
        with self._changed:
            self._stream = stream
            orders = list(self._orders.values())
        with self._writing:
            for line in orders:
                stream.write(line)

    def _disconnected(self) -> None:
        with self._changed:
            self._stream = None

    def _have(self) -> dict[str, Any]:
        return {
            "logs": self.home.sizes(self.node.index, self.node.tasks),
            "reports": self.home.reports(self.node.tasks, REPORTS),
            "files": self._files,
            "tasks": list(self.node.tasks),
            "merge_interval_s": self.merge_interval_s,
            "keep": list(self.node.keep),
            "code": self.node.code,
        }

    def _take(self, header: Mapping[str, Any], data: bytes) -> None:
        kind = header["kind"]
        self._note_time(header)
        if kind in _COMING:
            self._note_coming()
        if kind in {"log", "report"}:
            self._take_words(header, data)
        elif kind in {"file", "link", "directory", "gone"}:
            self._take_file(header, data)
        elif kind == "silent":
            self.silent[header["task"]] = "" if header["started"] else header["words"].strip()
        elif kind == "hello":
            self.interface, self.subnet = header["interface"], header["subnet"]
            self.ports = self.ports or header["ports"]
        elif kind == "full":
            self.is_full = True
        elif kind == "leaving":
            self._note_leaving(header.get("since", 0.0))
        elif kind == "problem":
            self.problems.append(header["message"])
        elif kind == "done":
            with self._changed:
                self._orders.pop(header["number"], None)
                self._asked.pop(header["number"], None)
        name = f"ready {header['what']}" if kind == "ready" else kind
        with self._changed:
            self._said[name] = self._said.get(name, 0) + 1
            self._changed.notify_all()

    def _note_time(self, header: Mapping[str, Any]) -> None:
        """What the node's clock says, and when it was asked for what it answers; an agent of an earlier tfjob does not say it."""
        if "time" in header:
            order = header.get("number", 0 if header["kind"] == "hello" else -1)
            self._clock.hear(header["time"], self._asked.get(order))
        if "looked" in header:
            self.looked = max(self._clock.latest(header["looked"]), self.looked or 0.0)

    def _note_leaving(self, since: float) -> None:
        """Its container was told to end, at a time by the node's clock: others may have failed of it before that is heard."""
        ago_s = max(time.time() - self._clock.latest(since), 0.0) if since else 0.0
        self._leaving_since = self._leaving_since or time.monotonic() - ago_s

    def _take_words(self, header: Mapping[str, Any], data: bytes) -> None:
        if header["kind"] == "log":
            kept = self.home.log(self.node.index, header["path"], header["offset"], data)
            self._note_coming(kept=kept, whole=kept)  # it never comes again
        elif header["task"] not in self.node.tasks or header["name"] not in REPORTS:
            raise ValueError(f"a report of {header['task']} named {header['name']}")
        else:
            self.home.report(header["task"], header["name"], self._clock.by_ours(header["content"]))

    def _take_file(self, header: Mapping[str, Any], data: bytes) -> None:
        kind, index, path = header["kind"], self.node.index, header["path"]
        if kind == "file":
            whole = self.home.part(index, dict(header), data, self._note_coming)
            if whole:
                self._files[path] = [header["size"], header["mtime_ns"]]
            self._note_coming(kept=whole or self.home.is_receiving(index), whole=whole)
        elif kind == "link":
            self.home.link(index, path, header["target"])
        elif kind == "directory":
            self.home.directory(path)
            self._files[path] = [-1, 0]
        else:
            self.home.gone(index, path)
            self._files.pop(path, None)

    def _note_coming(self, *, kept: bool = True, whole: bool = False) -> None:
        """Something of what the node has comes: whoever waits for the last of it waits on, if not too long in vain."""
        now = time.monotonic()
        if kept:
            self._kept_last = now
        if whole:
            self._kept_at_beginning = self._beginnings
        if now - self._kept_last < _VAIN_S:
            self._sent_last = now

    # Trouble.

    def _check(self) -> None:
        """Find out whether the container still runs; if nobody can say, whether the node is lost."""
        self._answers = False
        try:
            self._look_at_container()
            self._answers = True
        except RefusalError:
            self._answers = True
        except TargetError:
            pass
        except Exception as error:  # noqa: BLE001  # as in `_live`; what is wrong here may pass
            with suppress(OSError):  # on a full disk
                sys.stderr.write(f"how {self.node.name} is can't be told: {error!r}\n")
        if self._closing or self.ended is not None:
            return
        if self._left_s < 0 and self._answers and self._pardoned < self._heard:
            # Silent was this process, which may have stood still for so long: the node has time to say something.
            self._pardoned = time.monotonic()
            self._more = self._pardoned + min(_SILENT_S, self.lost_s)
        elif self._left_s < 0:
            self._end(Ended(f"{self.node.name} did not answer for {self.lost_s:g} s", lost=True))
        else:
            time.sleep(min(_RETRY_S, max(self._left_s, _PAUSE_S)))

    def _look_at_container(self) -> None:
        try:
            state = self.api.state(self.node.container, min(_CALL_S, max(self._left_s, _QUICK_S)))
        except RefusalError as error:
            if error.status != 404:
                raise
            self._end(Ended("its container was removed"))
        else:
            if not state["Running"]:
                self._stopped(state)

    def _stopped(self, state: Mapping[str, Any]) -> None:
        node, by_ours = self.node, self._clock.by_ours
        was_told = salvage(self.api, node.container, node.index, self.home, self._note_coming, by_ours=by_ours)
        self._end(end_of(node.name, state, self._last_words, was_told=was_told or self._leaving_since is not None))

    def _last_words(self) -> str:
        with suppress(TargetError, RefusalError):
            return self.api.last_words(self.node.container, 5, _CALL_S).strip()
        return ""

    def _end(self, ended: Ended) -> None:
        with self._changed:
            self.ended = ended
            self._changed.notify_all()
