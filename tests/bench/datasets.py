"""Measures what tfjob promises about data, as ratios against what people use otherwise: `python tests/bench/datasets.py`.

Against `curl --parallel` and `aria2c` for 10,000 small files and one of 2 GB, from nginx on loopback, and against `cp -r`
and `rsync` for a tree of 10,000 files. What a job takes is measured to its script's first line, less what the same job
without data takes. Pairs are run in turn; the median of their ratios counts. Ends with exit code 1 when a goal is missed.

All lies in memory (tmpfs) where there is enough: ext4 takes up to twenty times as long to make a file for minutes after many were
deleted, whoever makes it, so that ratios of neighbours on a disk say little. For the same reason small files are not deleted between
measurements. `--only WORD` measures the lines that have the word in them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROGRAM = str(Path(sys.executable).with_name("tfjob"))
PACKAGES = {"aria2c": "aria2", "curl": "curl", "rsync": "rsync", "nginx": "nginx-light"}
PORT = 8765
NGINX = """\
worker_processes 1; daemon off; pid {at}/pid; error_log {at}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000;
  client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class Theirs(NamedTuple):
    """What people use otherwise: the seconds it takes, the goal (None: none), and whether it is measured once only."""

    run: Callable[[], float]
    goal: float | None
    is_slow: bool = False


class Bench:
    """A folder to measure in, and what is measured there."""

    def __init__(self, folder: Path, files: int, big_mb: int, pairs: int, only: str) -> None:
        """Make the data: `files` small files and one big one."""
        self.folder = folder
        self.only = only
        self.files = files
        self.pairs = pairs
        self.missed = 0
        self._count = 0
        self._environ = {**os.environ, "TFJOB_STORE": str(folder / "store")}
        self.tree = folder / "www" / "tree"
        for number in range(files):
            at = self.tree / f"{number % 100:02d}"
            at.mkdir(parents=True, exist_ok=True)
            (at / f"{number}.bin").write_bytes(os.urandom(2000))
        self.few = folder / "few"
        shutil.copytree(self.tree / "00", self.few)
        with (folder / "www" / "big.bin").open("wb") as file:
            for _ in range(big_mb):
                file.write(os.urandom(1_000_000))
        self.big_bytes = big_mb * 1_000_000
        folder.chmod(0o755)
        self.urls = [f"http://127.0.0.1:{PORT}/tree/{n % 100:02d}/{n}.bin" for n in range(files)]
        self.big = f"http://127.0.0.1:{PORT}/big.bin"
        subprocess.run([PROGRAM, "init"], cwd=folder, env=self._environ, check=True, capture_output=True)

    def new(self, what: str) -> Path:
        """A directory that nothing was in before."""
        self._count += 1
        made = self.folder / f"{what}-{self._count}"
        made.mkdir()
        return made

    def register(self, name: str, urls: list[str]) -> None:
        """Register addresses as a dataset."""
        (self.folder / "urls.txt").write_text("\n".join(urls), encoding="utf-8")
        command = [PROGRAM, "dataset", "create", "--name", name, "--paths-from", "urls.txt"]
        subprocess.run(command, cwd=self.folder, env=self._environ, check=True, capture_output=True)

    def job(self, dataset: str = "", *, store: Path | None = None) -> float:
        """Seconds from the submit to the first line of a script that has the dataset."""
        section = f"dataset: {{d: {dataset}}}\n" if dataset else ""
        (self.folder / "job.yml").write_text(f"name: first-line\ncommand: date +%s.%N\n{section}", encoding="utf-8")
        environ = {**self._environ, **({"TFJOB_STORE": str(store)} if store else {})}
        began = time.time()
        done = subprocess.run(
            [PROGRAM, "submit", "job.yml"], cwd=self.folder, env=environ, check=True, capture_output=True, text=True
        )
        return float(done.stdout.splitlines()[0]) - began

    def curl(self, urls: list[str]) -> float:
        """Seconds that curl takes for the addresses, side by side."""
        into = self.new("curl")
        lines = "".join(f'url = "{url}"\noutput = "{into}/{url.rpartition("/")[2]}"\n' for url in urls)
        (self.folder / "curl.txt").write_text(lines, encoding="utf-8")
        return timed(["curl", "-s", "--parallel", "--parallel-max", "16", "-K", str(self.folder / "curl.txt")])

    def curl_and_sum(self, urls: list[str]) -> float:
        """The same, and what `sha256sum` takes for what came."""
        taken_s = self.curl(urls)
        return taken_s + timed(["sha256sum", *map(str, (self.folder / f"curl-{self._count}").iterdir())])

    def aria(self, urls: list[str]) -> float:
        """Seconds that aria2c takes for the addresses, side by side."""
        (self.folder / "urls.txt").write_text("\n".join(urls), encoding="utf-8")
        options = ["-q", "-j16", "-x8", "--file-allocation=none", "-d", str(self.new("aria"))]
        return timed(["aria2c", *options, "-i", str(self.folder / "urls.txt")])

    def ratio(
        self, name: str, ours: Callable[[], float], theirs: Mapping[str, Theirs], *, is_big: bool = False
    ) -> None:
        """Measure ours and each of the others in turn, and print the medians and the median of the ratios."""
        lines = [key for key in theirs if self.only in f"{name} / {key}"]
        measured: dict[str, list[tuple[float, float]]] = {key: [] for key in lines}
        for number in range(self.pairs if lines else 0):
            mine = max(ours() - self.job(), 0)
            for key in lines:
                if number == 0 or not theirs[key].is_slow:
                    measured[key].append((mine, theirs[key].run()))
            if is_big:
                self.clear()
        for key, pairs in measured.items():
            ratio = statistics.median(mine / other for mine, other in pairs)
            goal = theirs[key].goal
            self.missed += goal is not None and ratio > goal
            mine_s, other_s = (statistics.median(times) for times in zip(*pairs, strict=True))
            shown = "" if goal is None else f"≤ {goal}"
            print(f"| {name} / {key} | {mine_s:.2f} | {other_s:.2f} | {ratio:.2f} | {shown} |", flush=True)

    def clear(self) -> None:
        """Remove the copies of the big file."""
        for what in ("store", "curl", "aria"):
            for path in self.folder.glob(f"{what}-*/**/*"):
                if path.is_file() and path.stat().st_size >= self.big_bytes:
                    path.unlink()

    def added(self, name: str, ours: Callable[[], float], theirs: Callable[[], float], goal_s: float) -> None:
        """Measure both in turn, after once each to warm up, and print the medians and the median of the differences."""
        if self.only not in name:
            return
        ours()
        theirs()
        pairs = [(ours(), theirs()) for _ in range(max(self.pairs, 5))]
        more_s = statistics.median(mine - other for mine, other in pairs)
        self.missed += more_s > goal_s
        mine_s, other_s = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(f"| {name} | {mine_s:.2f} | {other_s:.2f} | +{more_s:.2f} s | ≤ {goal_s} s |", flush=True)


def main() -> int:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--big-mb", type=int, default=2_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="")
    asked = parser.parse_args()
    have(PACKAGES)
    memory = in_memory(6 * asked.big_mb + asked.files // 5 + 1000)
    with tempfile.TemporaryDirectory(prefix="tfjob-bench-", dir=memory) as folder, quiet(folder) as at:
        bench = Bench(at, asked.files, asked.big_mb, asked.pairs, asked.only)
        with nginx(at):
            print("| what | tfjob, s | the other, s | ratio | goal |")
            print("|---|---|---|---|---|")
            measure(bench)
    return 1 if bench.missed else 0


def measure(bench: Bench) -> None:
    """Every comparison, a line each."""
    many, tree = f"{bench.files:,} small files", str(bench.tree)
    bench.register("many", bench.urls)
    bench.register("big", [bench.big])
    bench.ratio(
        f"{many} from the web",
        lambda: bench.job("many", store=bench.new("store")),
        {
            "curl": Theirs(lambda: bench.curl(bench.urls), 1.2),
            "aria2c": Theirs(lambda: bench.aria(bench.urls), 1.2, is_slow=True),  # half a minute and more
        },
    )
    bench.ratio(
        "one big file from the web",
        lambda: bench.job("big", store=bench.new("store")),
        {
            "curl": Theirs(lambda: bench.curl([bench.big]), 1.2),
            "curl and sha256sum": Theirs(lambda: bench.curl_and_sum([bench.big]), None, is_slow=True),
            "aria2c": Theirs(lambda: bench.aria([bench.big]), 1.2, is_slow=True),
        },
        is_big=True,
    )
    bench.ratio(
        f"{many} of this machine, `download`",
        lambda: bench.job(f"{{paths: {tree}, mode: download}}"),
        {
            "cp -r": Theirs(lambda: timed(["cp", "-r", tree, str(bench.new("copy"))]), 1.2),
            "rsync -a": Theirs(lambda: timed(["rsync", "-a", f"{tree}/", str(bench.new("copy"))]), 1.2),
        },
    )
    bench.added(f"a second job with {many} from the web / without data", lambda: bench.job("many"), bench.job, 0.3)
    mount, few = f"{{paths: {tree}}}", f"{{paths: {bench.few}}}"
    bench.added(f"a second job with {many} mounted / without data", lambda: bench.job(mount), bench.job, 0.3)
    bench.added(f"{many} mounted / 100 mounted", lambda: bench.job(mount), lambda: bench.job(few), 0.3)


def timed(command: list[str]) -> float:
    """Run a command to its end; the seconds it took."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - began


def have(programs: dict[str, str]) -> None:
    """Install what is missing, where this user may."""
    missing = [package for program, package in programs.items() if shutil.which(program) is None]
    if missing:
        print(f"installing {', '.join(missing)}", file=sys.stderr)
        command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def in_memory(needed_mb: int) -> str | None:
    """A directory that lies in memory, if there is room for so much; None for the usual one."""
    place = Path("/dev/shm")  # the name that Linux gives it
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    has_room = place.is_dir() and shutil.disk_usage(place).free // 10**6 > needed_mb and pages // 10**6 > needed_mb
    return str(place) if has_room else None


@contextmanager
def quiet(folder: str) -> Iterator[Path]:
    """The folder; what was written there goes to the disk before anything is measured."""
    os.sync()
    yield Path(folder)


@contextmanager
def nginx(folder: Path) -> Iterator[None]:
    """A web server on loopback that serves the folder's `www`, as whoever runs this."""
    at = folder / "nginx"
    at.mkdir()
    (at / "nginx.conf").write_text(NGINX.format(at=at, port=PORT, root=folder / "www"), encoding="utf-8")
    server = subprocess.Popen(["nginx", "-c", at / "nginx.conf", "-e", at / "error.log"])
    try:
        time.sleep(1)
        yield
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    sys.exit(main())
