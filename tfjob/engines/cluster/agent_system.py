"""What the agent asks of the system it is on: trees of files, processes, ports, interfaces. As plain as the agent itself."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK_BYTES = 1 << 18
PORTS = range(20000, 32000)


def spawn(work: Callable[[], int], log: str) -> int:
    """Start a process in a session of its own, its output in a log, and return its pid. It does `work` and ends with its result.

    It begins as a copy of this one: no other Python has to be started. Of this one's files and threads it has none.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        nothing = os.open(os.devnull, os.O_RDONLY)
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor, standard in ((nothing, 0), (written, 1), (written, 2)):
            os.dup2(descriptor, standard)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                try:
                    os.close(int(name))
                except OSError:  # by which the list was read
                    pass
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it
        code = work()
    except BaseException:  # noqa: BLE001  # the child must never return into the parent's code
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        os._exit(code)


def copy_tree(source: str, target: str) -> None:
    """A copy that may be written to, with the times of the original: whole, or not at all. One that is there stays."""
    unfinished = "{}.unfinished-{}".format(target, os.getpid())
    try:
        copy_directories(source, unfinished)
        try:
            os.rename(unfinished, target)
        except OSError:
            if not os.path.isdir(target):  # another one was quicker
                raise
    finally:
        if os.path.lexists(unfinished):
            import shutil

            shutil.rmtree(unfinished, ignore_errors=True)


def copy_directories(source: str, target: str) -> None:
    """Copy a tree to where nothing is."""

    def stop(error: OSError) -> None:
        raise error

    os.makedirs(target)
    for parent, names, files in os.walk(source, onerror=stop):
        to = os.path.normpath(os.path.join(target, os.path.relpath(parent, source)))
        for name in files + [one for one in names if os.path.islink(os.path.join(parent, one))]:
            copy_file(os.path.join(parent, name), os.path.join(to, name))
        for name in names:
            if not os.path.islink(os.path.join(parent, name)):
                os.mkdir(os.path.join(to, name))
    for parent, _, _ in os.walk(source, topdown=False):  # when nothing changes their times any more
        status = os.stat(parent)
        to = os.path.normpath(os.path.join(target, os.path.relpath(parent, source)))
        os.chmod(to, status.st_mode & 0o777 | 0o700)
        os.utime(to, ns=(status.st_atime_ns, status.st_mtime_ns))


def copy_file(source: str, target: str) -> None:
    """A copy of a file that may be written to, or of a link."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    with open(source, "rb") as original, open(target, "wb") as copy:
        while True:
            data = original.read(CHUNK_BYTES)
            if not data:
                break
            copy.write(data)
        status = os.fstat(original.fileno())
    os.chmod(target, status.st_mode & 0o777 | 0o200)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def place_files(directory: str, files: list[list[str]], copy: bool) -> None:
    """Links to files, or copies of them, by their names in a directory."""
    import shutil

    for source, name in files:
        at = os.path.join(directory, name)
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if copy:
            shutil.copyfile(source, at)
        else:
            os.symlink(source, at)


def link(at: str, to: str) -> None:
    """Make `at` a link to the directory `to`; what is in its way moves there."""
    os.makedirs(to, exist_ok=True)
    if os.path.isdir(at) and not os.path.islink(at):
        import shutil

        shutil.copytree(at, to, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(at)
    elif os.path.lexists(at):
        os.unlink(at)
    os.makedirs(os.path.dirname(at), exist_ok=True)
    os.symlink(to, at)


def free_bytes(directory: str) -> int:
    """How much can still be written to the disk that a directory is on (statvfs(3)); nothing where no file can be made."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return 0 if found.f_files and not found.f_favail else found.f_bavail * found.f_frsize


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on here, all different; below the range the kernel takes for outgoing connections (ip(7))."""
    found: dict[int, socket.socket] = {}
    try:
        begin = int.from_bytes(os.urandom(4), "big") % len(PORTS)  # so that two runs rarely try the same
        for port in [*PORTS[begin:], *PORTS[:begin]]:
            if len(found) == count:
                break
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                one.bind(("0.0.0.0", port))  # noqa: S104  # only bound, never listened on
            except OSError:
                one.close()
                continue
            found[port] = one
        return list(found)
    finally:
        for one in found.values():
            one.close()


def interface_of(address: str) -> tuple[str, str]:
    """The interface that has an address of this node, and its network as CIDR; empty where none has it.

    Source: netdevice(7), SIOCGIFADDR and SIOCGIFNETMASK.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                own = fcntl.ioctl(asker.fileno(), 0x8915, request)[20:24]
                mask = fcntl.ioctl(asker.fileno(), 0x891B, request)[20:24]
            except OSError:
                continue
            if socket.inet_ntoa(own) == address:
                network = bytes(one & other for one, other in zip(own, mask))
                length = bin(int.from_bytes(mask, "big")).count("1")
                return name, f"{socket.inet_ntoa(network)}/{length}"
    return "", ""


def start_ticks(pid: int) -> int:
    """When a process started (proc(5), field 22); 0 for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
