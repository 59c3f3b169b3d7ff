"""Datasets that nodes fetch by themselves: from web servers and stores, all nodes at once, each content once a node.

A program of tfjob's does it in a container on the node (`node_fetch.py`), into the volume of a tree. What comes has to have
the SHA-256 that is known here. Credentials stay here: the program hears an address, signed for a while where that takes one,
by its stdin. A node that can't reach a source is named to the caller, who sends it the files instead.

As long as the container runs, the run is taken to live: so it ends soon when nobody is there any more who started it.

A volume ``tfjob-fetches-DIGEST`` says which run fetches a tree on a node: of two that want it, one waits for the other.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from tfjob.datasets.passwords import passwords
from tfjob.datasets.wanted import Settings
from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.stream import STDOUT, Hijacked
from tfjob.engines.claimed import holder_of_claim, living_runs, name_of_run
from tfjob.engines.cluster import node_fetch, node_keep
from tfjob.engines.cluster.at_once import at_once
from tfjob.engines.cluster.kept import short, tree_labels
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.refusals import MAKE_ROOM, taking
from tfjob.engines.cluster.trees import PLACE, Tree, on_node, settle
from tfjob.errors import PreparationError, TargetError
from tfjob.spec.addresses import is_web, scheme_of, shown_address

__all__ = ["Fetching", "Unreached", "fetch_on_nodes"]

_UNUSED_S: Final = 60.0
"""So long a container waits for the program that fetches."""
_LEFT_S: Final = 5.0
"""So long it stays when that has ended: tfjob removes it at once."""
_SAY_S: Final = 10.0
_BEAT_S: Final = 60.0
"""So long the program goes on when it hears nothing."""
_FETCHES: Final = "tfjob.fetches"
_SIGNED_S: Final = 6 * 3600
"""How long the address lives that a node gets of an object; less where the credentials that sign it end sooner."""
_ANEW_S: Final = 600.0
"""So long after they were signed, addresses are signed anew, and nodes are told."""
_SOON_S: Final = 30.0
"""The same where they could not be signed."""
_TOLD_AT_ONCE: Final = 1000
"""So many addresses that were signed anew are told at a time."""
_TIMEOUT_S: Final = 60.0
_SILENT_S: Final = 30.0
"""The program says every half second how far it is."""
_LOOK_S: Final = 0.2
_LONG_LOOK_S: Final = 2.0
_SLOWER: Final = 1.5
_MB: Final = 1_000_000
_SIGNING: Final = ("s3", "gs", "az", "abfs", "abfss")

Node = tuple[str, DockerApi]
_Made = TypeVar("_Made")


class Unreached(Exception):  # no error where the files can be sent
    """Why a node could not fetch a tree, in words."""


@dataclass
class Fetching:
    """One tree that nodes fetch: the program's Python in the image, and how far each node is, by its name."""

    tree: Tree
    image: str
    python: str
    key: RunKey
    settings: Settings
    told: Callable[[str], None]
    done: dict[str, tuple[int, int]] = field(default_factory=dict)
    streams: dict[str, Hijacked] = field(default_factory=dict)
    given_up: threading.Event = field(default_factory=threading.Event)
    others: dict[str, str] = field(default_factory=dict)
    """The nodes on which another run fetches the tree, with what to call it."""

    _signing: threading.Lock = field(default_factory=threading.Lock)
    _order: bytes | Unreached | None = None

    @property
    def progress(self) -> str:
        """How far the nodes are, in words."""
        count, total = len(self.tree.files), self.tree.size_bytes
        total_mb = -(-total // _MB)
        each = {
            **{name: f"{name} waits for {who}, which fetches it" for name, who in list(self.others.items())},
            **{
                name: f"{name} {files} of {count} files, {received // _MB if received < total else total_mb} of {total_mb} MB"
                for name, (files, received) in list(self.done.items())
            },
        }
        told = ", ".join(words for _, words in sorted(each.items()))
        return f"{self.tree.what}, fetched by its nodes: {told}" if told else ""

    def order(self) -> bytes | Unreached:
        """What the program is told, as it was signed last. The first time, it takes a millisecond or two for each object."""
        with self._signing:
            if self._order is None:
                self._order = _order(self, self.given_up)
            return self._order

    def sign_anew(self, over: threading.Event) -> None:
        """Sign the addresses again and again, until it is over: a node may wait or fetch for hours, and credentials end."""
        pause_s = _ANEW_S
        while not over.wait(pause_s):
            order = _order(self, over)
            if isinstance(order, Unreached):
                pause_s = _SOON_S
            else:
                self._order, pause_s = order, _ANEW_S

    def give_up(self) -> None:
        """End it on every node."""
        self.given_up.set()
        for stream in list(self.streams.values()):
            stream.close()


def fetch_on_nodes(fetching: Fetching, nodes: Sequence[Node]) -> list[str | Unreached]:
    """Have every node fetch the tree; the volume that has it, or why the node could not, for each.

    Raises PreparationError for a content that is not the one that is asked for, and for a full disk; TargetError for a node
    that does not answer; then the other nodes fetch no further. What `told` raises ends it.
    """
    order = _beside(fetching, fetching.order, [])
    if isinstance(order, Unreached):
        return [order for _ in nodes]
    errors: list[BaseException] = []

    def fetch(node: Node) -> str | Unreached:
        try:
            return _fetch_on(fetching, node)
        except BaseException as error:
            errors.append(error)  # the first of them is why the others end
            fetching.give_up()
            raise

    names = ", ".join(name for name, _ in nodes)
    fetching.told(f"{names} fetch{'es' if len(nodes) == 1 else ''} {fetching.tree.what}")
    over = threading.Event()
    if any(not is_web(one.address) for one in fetching.tree.remote):
        threading.Thread(target=fetching.sign_anew, args=(over,), daemon=True).start()
    try:
        return _beside(fetching, lambda: at_once(fetch, nodes), errors)
    finally:
        over.set()


def _beside(fetching: Fetching, work: Callable[[], _Made], errors: list[BaseException]) -> _Made:
    """What the work makes, which another thread does. Meanwhile it is told how far the nodes are; what `told` raises ends it.

    The first of `errors` is raised, to which that of the work is added.
    """
    made: list[_Made] = []

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    said = ""
    try:
        while thread.is_alive():
            thread.join(_LOOK_S)
            now = fetching.progress
            fetching.told("" if now == said else now)
            said = now
    except BaseException:
        fetching.give_up()
        thread.join(_TIMEOUT_S)
        raise
    if errors:
        raise errors[0]
    return made[0]


def _order(fetching: Fetching, over: threading.Event) -> bytes | Unreached:
    """What the program is told; nothing of use once it is over."""
    files = []
    known = _known_hosts()
    for address, name, size, sha256 in fetching.tree.remote:
        if over.is_set():
            return Unreached("given up")
        if is_web(address) and (host := urlsplit(address).hostname) in known:
            return Unreached(f"only this machine has a name and a password for {host}")
        opened = _opened(address)
        if opened is None:
            return Unreached(f"only this machine can read {scheme_of(address)}:// addresses here")
        files.append([opened, name, size, sha256, not is_web(address)])
    settings = fetching.settings
    facts = {
        "files": files,
        "connections": settings.connections,
        "timeout_s": settings.timeout_s,
        "tries": settings.tries,
        "pause_s": settings.pause_s,
        "beat_s": _BEAT_S,
    }
    return json.dumps(facts).encode() + b"\n"


def _known_hosts() -> Collection[str]:
    """The hosts of the web that have a name and a password in ~/.netrc (or NETRC): no node hears them."""
    try:
        return passwords().keys()
    except PreparationError:  # where it is needed here, its trouble is told
        return ()


def _opened(address: str) -> str | None:
    """An address that anybody can ask for the file: one of the web as it is, one of a store signed; None if there is none."""
    if is_web(address):
        parts = urlsplit(address)
        host = parts.netloc.rpartition("@")[2].encode("idna" if not parts.netloc.isascii() else "ascii").decode()
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&()*+,;=~-._?[]")
        return parts._replace(netloc=host, path=path, query=query, fragment="").geturl()
    if scheme_of(address) in _SIGNING:
        from tfjob.datasets.stores import signed_address  # noqa: PLC0415  # only where it is needed

        return signed_address(address, _SIGNED_S)
    return None


def _fetch_on(fetching: Fetching, node: Node) -> str | Unreached:
    """Fetch the tree on one node, or wait until another run has."""
    name, api = node
    with taking(name, fetching.tree.what):
        pause_s = _LOOK_S
        while other := _whose_turn(fetching, api):
            fetching.others[name] = other
            if fetching.given_up.wait(pause_s):
                return Unreached("given up")
            pause_s = min(pause_s * _SLOWER, _LONG_LOOK_S)
            if there := on_node(api, [fetching.tree]):
                del fetching.others[name]
                return there[fetching.tree.digest]
        fetching.others.pop(name, None)
        try:
            if there := on_node(api, [fetching.tree]):  # somebody was done just now
                return there[fetching.tree.digest]
            return _fill(fetching, node)
        finally:
            with suppress(RefusalError, TargetError):
                api.remove_volume(_turn(fetching.tree), _TIMEOUT_S)


def _turn(tree: Tree) -> str:
    return f"tfjob-fetches-{short(tree.digest)}"


def _whose_turn(fetching: Fetching, api: DockerApi) -> str:
    """Which other run's turn it is to fetch the tree; nothing when it is this one's. A turn of a run that is dead is over."""
    labels = {**fetching.key.labels, _FETCHES: fetching.tree.digest}
    of_turn = api.make_volume(_turn(fetching.tree), labels, _TIMEOUT_S)["Labels"]
    holder = name_of_run(of_turn)
    if holder == fetching.key.name:
        return ""
    volumes = api.volumes({"tfjob.run": ""}, _TIMEOUT_S)
    living = living_runs(api.with_labels({"tfjob.run": ""}, _TIMEOUT_S), volumes, api.clock(_TIMEOUT_S))
    if holder not in living:
        with suppress(RefusalError):
            api.remove_volume(_turn(fetching.tree), _TIMEOUT_S)
    return str(holder_of_claim(of_turn))


def _fill(fetching: Fetching, node: Node) -> str | Unreached:
    tree, (name, api) = fetching.tree, node
    order = Unreached("given up") if fetching.given_up.is_set() else fetching.order()
    if isinstance(order, Unreached):
        return order
    volume = f"{tree.name}-{fetching.key.name}"
    api.make_volume(volume, tree_labels(volume, tree.size_bytes), _TIMEOUT_S)
    is_whole = False
    try:
        with _container(fetching, api, volume) as container:
            argv = [fetching.python, "-I", "-c", _source(node_fetch), PLACE]
            stream = api.execute(container, argv, timeout_s=_SILENT_S)
            fetching.streams[name] = stream
            if fetching.given_up.is_set():  # by somebody who did not see this stream
                stream.close()
            try:
                stream.settimeout(_SILENT_S)
                stream.write(order)
                end = _heard(fetching, name, stream, order)
            except OSError as error:
                raise TargetError(f"{name} says nothing any more while it fetches {tree.what}: {error}") from error
            finally:
                stream.close()
        is_whole = end["end"] == "done"
        if is_whole:
            return settle(node, tree, volume)
        return _trouble(fetching, name, end)
    finally:
        if not is_whole:
            with suppress(RefusalError, TargetError):
                api.remove_volume(volume, _TIMEOUT_S)


def _source(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text(encoding="utf-8")


@contextmanager
def _container(fetching: Fetching, api: DockerApi, volume: str) -> Iterator[str]:
    """A container that runs, on the node's own network, with the volume that is filled."""
    body = {
        "Image": fetching.image,
        "Entrypoint": [fetching.python, "-I", "-S", "-c", _source(node_keep), str(_UNUSED_S), str(_LEFT_S)],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {**fetching.key.labels, _FETCHES: fetching.tree.digest},
        "HostConfig": {
            "AutoRemove": True,
            "Init": True,
            "NetworkMode": "host",
            "Mounts": [{"Type": "volume", "Source": volume, "Target": PLACE, "VolumeOptions": {"NoCopy": True}}],
        },
    }
    container = api.create("", body, _TIMEOUT_S)
    try:
        api.start(container, _TIMEOUT_S)
        yield container
    finally:
        with suppress(RefusalError, TargetError):
            api.remove(container, _TIMEOUT_S)


def _heard(fetching: Fetching, name: str, stream: Hijacked, order: bytes) -> Mapping[str, Any]:
    """Hear the program until it says its last word; tell it now and then that somebody is here."""
    buffer, said = b"", b""
    beats = _beats(fetching, order)
    next_beat = time.monotonic() + _SAY_S
    while (frame := stream.read_frame()) is not None:
        if time.monotonic() > next_beat:
            line = next(beats)
            stream.write(line)
            next_beat = time.monotonic() + (_SAY_S if line == b"\n" else 0.0)
        kind, data = frame
        if kind != STDOUT:
            said = (said + data)[-2000:]
            continue
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            facts: dict[str, Any] = json.loads(line)
            if "end" in facts:
                return facts
            fetching.done[name] = (int(facts["done"]), int(facts["bytes"]))
    why = said.decode(errors="replace").strip().rpartition("\n")[2]
    return {"end": "failed", "index": -1, "message": f"its program ended early{': ' if why else ''}{why}"}


def _beats(fetching: Fetching, told: bytes) -> Iterator[bytes]:
    """What the program is told after its order: that somebody is here; and addresses that were signed anew, some at a time."""
    while True:
        order = fetching.order()
        if isinstance(order, bytes) and order != told:
            told = order
            addresses = [row[0] for row in json.loads(order)["files"]]
            for first in range(0, len(addresses), _TOLD_AT_ONCE):
                some = {"first": first, "addresses": addresses[first : first + _TOLD_AT_ONCE]}
                yield json.dumps(some).encode() + b"\n"
        yield b"\n"


def _trouble(fetching: Fetching, name: str, end: Mapping[str, Any]) -> Unreached:
    """What to make of a failure: an error, or that the files are to be sent."""
    index, message = int(end["index"]), str(end["message"])
    remote = fetching.tree.remote
    shown = shown_address(remote[index].address) if 0 <= index < len(remote) else fetching.tree.what
    if end["end"] == "full":
        raise PreparationError(f"the disk of {name} is full: {shown} could not be fetched there", MAKE_ROOM)
    if end["end"] == "sum":
        raise PreparationError(
            f"{name} fetched {shown}: {message}, and SHA-256 {remote[index].sha256} is asked for",
            "Either the file was changed, or the sum in the file that names it is wrong. What came was thrown away.",
        )
    return Unreached(f"{shown}: {message}")
