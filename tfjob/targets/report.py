"""What was found of the nodes of a cluster, and what that means for jobs. Pure: who asks the nodes is `probing`."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tfjob.targets.address import address_of
from tfjob.targets.clock import Skew
from tfjob.targets.peers import Peer
from tfjob.targets.target import Gpu

__all__ = ["NodeReport", "Note", "with_notes"]

_LEAST_DISK_BYTES: Final = 15 * 2**30  # an image of TensorFlow with CUDA, and room to unpack it
_MOST_SKEW_S: Final = 1.0
_LEAST_ENGINE: Final = (20, 10)


@dataclass(frozen=True)
class Note:
    """Something to know of a node. An error keeps jobs from running there, a warning may."""

    severity: Literal["error", "warning", "note"]
    message: str
    hint: str = ""


@dataclass(frozen=True)
class NodeReport:
    """What was found of one node. What was not found out is None or empty, and a note says why.

    `clock` is how far its clock is ahead of ours. `security` are the engine's security options. `gpu_refusal` is why the
    engine gives no GPU to containers, where that was tried. `unanswered` is an error's message and hint.
    """

    name: str
    engine: str
    address: str
    version: str = ""
    system: str = ""
    architecture: str = ""
    gpus: tuple[Gpu, ...] = ()
    declared_gpus: int | None = None
    gpu_note: str = ""
    gpu_refusal: str = ""
    driver: str = ""
    disk_free_bytes: int | None = None
    clock: Skew | None = None
    security: tuple[str, ...] = ()
    has_tls: bool = False
    has_image: bool = False
    peers: tuple[Peer, ...] = ()
    unanswered: tuple[str, str] | None = None
    notes: tuple[Note, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether nothing stands in a job's way."""
        return not any(note.severity == "error" for note in self.notes)


def with_notes(reports: Sequence[NodeReport]) -> tuple[NodeReport, ...]:
    """Return the reports with what follows from them."""
    architectures = Counter(report.architecture for report in reports if report.architecture)
    usual = architectures.most_common(1)[0][0] if architectures else ""
    return tuple(replace(report, notes=tuple(_notes(report, usual, len(reports)))) for report in reports)


def _notes(report: NodeReport, usual: str, node_count: int) -> Iterator[Note]:
    if report.unanswered is not None:
        yield Note("error", *report.unanswered)
        return
    yield from _of_engine(report, usual, node_count)
    yield from _of_gpus(report)
    free = report.disk_free_bytes
    if free is not None and free < _LEAST_DISK_BYTES:
        yield Note(
            "warning",
            f"its engine has {free / 2**30:.1f} GiB of disk left; an image of TensorFlow with CUDA takes about 15",
            "Free some there: docker system df, then docker image prune.",
        )
    elif free is None:
        yield Note("note", "how much disk its engine has left was not found out", _how_to_ask(report))
    skew = report.clock
    if skew is not None and abs(skew.seconds) - skew.error_s > _MOST_SKEW_S:
        ahead = "ahead of" if skew.seconds > 0 else "behind"
        yield Note(
            "warning",
            f"its clock is {abs(skew.seconds):.1f} s {ahead} this machine's: times of logs and failures will not match",
            "Let both follow a time server: timedatectl set-ntp true, or chrony.",
        )
    yield from _of_peers(report)


def _of_engine(report: NodeReport, usual: str, node_count: int) -> Iterator[Note]:
    version = tuple(int(part) for part in report.version.split(".")[:2] if part.isdecimal())
    if version and version < _LEAST_ENGINE:
        yield Note(
            "error", f"its Docker Engine is {report.version}; 20.10 or later is needed", "Install a newer one there."
        )
    if report.architecture != usual:
        yield Note(
            "warning",
            f"it is {report.architecture}, and most of the others are {usual}: an image is for one of the two",
            "Give it the label type, and take nodes of one kind with compute.node_type.",
        )
    if "rootless" in report.security:
        yield Note(
            "error" if node_count > 1 else "warning",
            "its engine is rootless: containers there do not have the machine's own network",
            "Use the engine of the whole machine for jobs on several nodes.",
        )
    if "userns" in report.security:
        yield Note("note", "its engine maps the users of containers to others (userns-remap)")
    address = address_of(report.engine)
    if address.scheme == "tcp" and not report.has_tls and not _is_loopback(address.host):
        yield Note(
            "warning",
            "the connection to its engine has no TLS: whoever reaches that port is root there",
            "Use ssh://, or protect the engine with TLS and name the certificates with `tls`.",
        )


def _of_gpus(report: NodeReport) -> Iterator[Note]:
    declared, found = report.declared_gpus, len(report.gpus)
    if report.gpu_refusal and (found or declared):
        yield Note(
            "error",
            f"its engine gives no GPUs to containers: {report.gpu_refusal}",
            "Install the NVIDIA Container Toolkit there, then: nvidia-ctk runtime configure --runtime=docker; restart Docker.",
        )
    if declared is not None and found and declared > found:
        yield Note(
            "error",
            f"the target declares {declared} GPUs there, and it has {found}",
            f"Set gpus: {found}, or leave it out: then they are asked for.",
        )
    elif declared is not None and found > declared:
        yield Note("note", f"it has {found} GPUs, of which the target declares {declared}")
    if report.gpu_note and not found:
        yield Note("note", report.gpu_note)


def _of_peers(report: NodeReport) -> Iterator[Note]:
    lost = [peer for peer in report.peers if peer.reached is False]
    for peer in lost:
        yield Note(
            "error",
            f"it does not reach {peer.name} at {peer.address}: {peer.note}",
            "Tasks of a job listen on free ports: open them between the nodes. If the nodes have another network in common, "
            f"give {peer.name} its address there: `address`.",
        )
    unknown = [peer for peer in report.peers if peer.reached is None]
    if unknown:
        names = ", ".join(peer.name for peer in unknown)
        yield Note("note", f"whether it reaches {names} was not checked: {unknown[0].note}", _how_to_ask(report))


def _how_to_ask(report: NodeReport) -> str:
    is_asked = report.has_image or address_of(report.engine).scheme == "ssh"
    return "" if is_asked else "Run a job there first: its image can then be used to ask."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
