"""The nodes of a target, reached all at once: engines that answer, what is wrong with those that do not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.reach import engine_at
from tfjob.errors import TargetError, TargetRefused
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.node_gpus import probe_node
from tfjob.targets.peers import host_for_peers
from tfjob.targets.target import Node

__all__ = ["Reached", "Reaching"]

_FIRST_TRY_S: Final = 15.0
_AGAIN_S: Final = 1.0
_FRESH_S: Final = 10.0


@dataclass(frozen=True)
class Reached:
    """A node that answers. `options` are its engine's security options, `took_s` is how long it took to be reached."""

    order: int
    definition: NodeDefinition
    api: DockerApi
    node: Node
    options: frozenset[str]
    took_s: float = 0.0


class Reaching:
    """Reaches every node of a target in the background; a slow one is waited for, and tried again, up to the target's limit.

    `begun` is when the logins of `engines` were begun, if that was before.
    """

    def __init__(
        self,
        target: ClusterDefinition,
        environ: Mapping[str, str],
        *,
        with_gpus: bool,
        engines: Mapping[str, DockerApi] | None = None,
        begun: float | None = None,
    ) -> None:
        self.target = target
        self._environ = environ
        self._with_gpus = with_gpus
        self._engines = dict(engines or {})
        self._begun = time.monotonic() if begun is None else begun
        self._changed = threading.Condition()
        self._reached: dict[str, Reached] = {}
        self._problems: dict[str, TargetError] = {}
        self._given_up: set[str] = set()
        self._refused: set[str] = set()
        self._stopped = False
        for order, node in enumerate(target.nodes):
            self._begin(order, node, self._begun)

    def stop(self) -> None:
        """Try no more."""
        with self._changed:
            self._stopped = True

    def lost(self, node: Reached, error: TargetError | RefusalError | OSError) -> None:
        """Take a node that does not answer any more for one that has not answered yet: it is waited for again."""
        name = node.definition.name
        with self._changed:
            if self._reached.get(name) is not node:
                return
            del self._reached[name]
        self._note(name, error)
        threading.Thread(target=node.api.close, daemon=True).start()  # it is reached anew
        self._begin(node.order, node.definition)

    def refuse(self, node: Reached, error: RefusalError) -> None:
        """Do without a node that answers and can't be used: asking it again would change nothing."""
        name = node.definition.name
        with self._changed:
            if self._reached.get(name) is not node:
                return
            del self._reached[name]
            self._given_up.add(name)
            self._refused.add(name)
        self._note(name, TargetError(error.message))

    def try_again(self) -> None:
        """Reach for the nodes that were given up or done without: they may be well by now."""
        with self._changed:
            again, self._given_up, self._refused = self._given_up, set(), set()
        for order, node in enumerate(self.target.nodes):
            if node.name in again:
                self._begin(order, node)

    def _begin(self, order: int, definition: NodeDefinition, begun: float | None = None) -> None:
        now = time.monotonic()
        begun = now if begun is None else begun
        deadline = now + self.target.wait_s
        threading.Thread(target=self._reach, args=(order, definition, begun, deadline), daemon=True).start()

    def lately(self) -> Reaching:
        """This, if it was begun just now; else another, that asks again: nodes come and go while an image is built."""
        if time.monotonic() - self._begun < _FRESH_S:
            return self
        self.stop()
        engines = {node.definition.name: node.api for node in self.reached}  # logins that are there are used
        return Reaching(self.target, self._environ, with_gpus=self._with_gpus, engines=engines)

    @property
    def reached(self) -> tuple[Reached, ...]:
        """The nodes that answer, in the target's order."""
        with self._changed:
            return tuple(sorted(self._reached.values(), key=lambda one: one.order))

    @property
    def open(self) -> int:
        """How many nodes may still answer."""
        with self._changed:
            return len(self.target.nodes) - len(self._reached) - len(self._given_up)

    @property
    def problems(self) -> dict[str, TargetError]:
        """What is wrong with the nodes that do not answer, by their names."""
        with self._changed:
            return {name: error for name, error in self._problems.items() if name not in self._reached}

    @property
    def silent(self) -> str:
        """The nodes that can't be counted on, each with the reason; empty where all answer."""
        with self._changed:
            refused = set(self._refused)
        return "; ".join(
            f"{name} {'can not be used' if name in refused else 'does not answer'}: {error.message}"
            for name, error in self.problems.items()
        )

    def wait(self, timeout_s: float) -> None:
        """Wait until something has changed, but not longer."""
        with self._changed:
            self._changed.wait(timeout_s)

    def _reach(self, order: int, definition: NodeDefinition, begun: float, deadline: float) -> None:
        api: DockerApi | None = None
        while not self._stopped:
            try:
                api = api or self._engines.get(definition.name)
                api = api or engine_at(definition.engine, tls=definition.tls, environ=self._environ)
                found = self._try(order, definition, api, deadline)
            except (TargetError, RefusalError, OSError) as error:
                self._note(definition.name, error)
                if isinstance(error, TargetRefused) or time.monotonic() >= deadline:
                    self._give_up(definition.name)
                    return
                time.sleep(_AGAIN_S)
            except Exception as error:  # noqa: BLE001  # whatever it is, nobody shall wait for a thread that is gone
                self._note(definition.name, TargetError(f"{definition.name} said what can't be read: {error!r}"))
                self._give_up(definition.name)
                return
            else:
                with self._changed:
                    if not self._stopped:
                        self._reached[definition.name] = replace(found, took_s=time.monotonic() - begun)
                        self._changed.notify_all()
                        return
        if api is not None:
            api.close()  # nobody waits for it any more

    def _give_up(self, name: str) -> None:
        with self._changed:
            self._given_up.add(name)
            self._changed.notify_all()

    def _note(self, name: str, error: Exception) -> None:
        told = error if isinstance(error, TargetError) else TargetError(f"{name}: {error}")
        with self._changed:
            self._problems[name] = told
            self._changed.notify_all()

    def _try(self, order: int, definition: NodeDefinition, api: DockerApi, deadline: float) -> Reached:
        left_s = max(deadline - time.monotonic(), 1.0)
        options = api.check(min(_FIRST_TRY_S, left_s))
        address = _address(definition, self._environ)
        node = Node(definition.name, address)
        if self._with_gpus:
            node = probe_node(definition, api, address=address, timeout_s=left_s)
        return Reached(order, definition, api, node, options)


def _address(definition: NodeDefinition, environ: Mapping[str, str]) -> str:
    """Where peers reach the node: as declared, else what its engine's address says, else this machine's way out."""
    host = definition.address or host_for_peers(definition, environ)
    if not host:
        return own_address()
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0])
    except OSError:
        return host  # which nodes may know, though this machine does not


def own_address(towards: str = "192.0.2.1") -> str:
    """The address of this machine on the route to another: nothing is sent (udp(7), connect). 192.0.2.1 is nobody (RFC 5737)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            asker.connect((towards, 9))
            return str(asker.getsockname()[0])
        except OSError:
            return "127.0.0.1"
