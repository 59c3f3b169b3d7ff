"""A run's datasets: fetched into the cache where they are behind addresses, put where tasks find them, and remembered."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfjob.datasets.cache import Cache
from tfjob.datasets.files import SHA256, whole_directory
from tfjob.datasets.placing import clear, place
from tfjob.datasets.standby import Standby, process_count
from tfjob.durable import replace_text
from tfjob.engines.dataset_contents import is_remote
from tfjob.errors import NotFound, PreparationError, TfjobError, UsageError
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.ahead import Ahead
from tfjob.runs.changed_data import changes_of_mounts, copy_for_tasks, refuse_changed
from tfjob.runs.fetched import dataset_text, with_fetched
from tfjob.runs.planned_data import (
    as_tree,
    asked_for,
    files_to_come,
    has_local,
    is_large,
    rows_of,
    wanted_of,
    with_contents,
)
from tfjob.runs.record import read_record
from tfjob.spec.addresses import is_web
from tfjob.values import decode

__all__ = ["RunData"]

_GIB = 1 << 30
_JUST_S = 5.0
_SEEN = "seen:"
_SUMS = (SHA256, _SEEN)
_HEX = 64
"""Digits of a SHA-256, at the end of a mark that has one."""


if TYPE_CHECKING:
    from tfjob.datasets.fetch import Fetched
    from tfjob.datasets.growing import GrowingTree
    from tfjob.datasets.index import Known
    from tfjob.datasets.wanted import Settings


class _Ready(NamedTuple):
    """A dataset as it was fetched, the tree of the cache or the directory of this machine that is exactly its files, and its JSON."""

    dataset: DatasetPlan
    tree: Path | None = None
    directory: str | None = None
    text: str = ""


@dataclass(frozen=True)
class _Gathered:
    """A run's datasets as they are asked for and as they are, when files of this machine were looked at, and what was fetched."""

    asked: tuple[DatasetPlan, ...]
    datasets: tuple[DatasetPlan, ...]
    looked: float
    fetched: Fetched | None = None
    has_room: bool = True


@dataclass
class RunData:
    """What it takes to prepare a run's datasets: the cache, how much it may hold, the registry, and how files are fetched.

    `here`: the run's tasks see its directory, so that datasets are placed in it. `nodes_fetch`: its nodes fetch by themselves
    what they can tell from any other content; it is not fetched here.
    """

    plan: Plan
    run: RunDirectory
    cache: Cache
    limit_gib: float
    registry: Path
    settings: Settings
    here: bool = True
    nodes_fetch: bool = False
    standby: Standby = field(default_factory=Standby)
    _ahead: Ahead[_Gathered] | None = None

    def foresee(self) -> None:
        """Start what fetches very many small files, if the run may need it: that loads while the rest is got ready."""
        if count := 0 if self.nodes_fetch else files_to_come(self.plan.datasets, self.cache):
            self.standby.start(process_count(count, self.settings))

    def begin(self, progress: Callable[[str], None]) -> None:
        """Fetch what is missing from now on, beside whatever else is got ready; `prepare` waits for it."""

        def work(check: Callable[[], None]) -> _Gathered:
            def tell(message: str) -> None:
                check()
                progress(message)

            return self._gather(tell)

        self._ahead = Ahead(work)

    def failure(self) -> BaseException | None:
        """What kept something from being fetched that was begun, as soon as that is known."""
        return self._ahead.failure() if self._ahead is not None else None

    def prepare(self, progress: Callable[[str], None]) -> tuple[Plan, tuple[str, ...]]:
        """Fetch what is missing and put everything in its place. Returns the plan as fetched, and what people should know.

        Can be done again after it was interrupted. Raises PreparationError when something can't be had, or has changed.
        """
        try:
            gathered = self._ahead.result() if self._ahead is not None else self._gather(progress)
            with _without_garbage():
                return self._finish(gathered)
        finally:
            self.end()

    def end(self) -> None:
        """End what was begun and is not needed any more."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or ahead.end():  # what waits for something that never comes ends with this process
            self.standby.end()

    def _gather(self, progress: Callable[[str], None]) -> _Gathered:
        """Fetch what is missing. What came is used by this run from then on, and stays in the cache."""
        with _without_garbage():
            asked = with_fetched(self.plan, self.run).datasets  # another try has the very content of the one before
            self._refuse_changed(asked)
            looked = time.monotonic()
            asked = tuple(map(self._with_sizes, asked))
            if not any(map(as_tree, asked)):
                return _Gathered(asked, asked, looked)
            with self.cache.filling():  # what is known is not evicted before it is used
                known = {one.name: found for one in asked if (found := self._kept(one)) is not None}
                for found in known.values():
                    self._use(found)
            missing = [one for one in asked if one.marks and one.name not in known and not self._is_left_to_nodes(one)]
            has_room = self._make_room(missing)
            with self.cache.filling(), self._growing(missing) as growing:
                fetched = self._fetch(missing, growing, progress) if missing else None
                ready = [
                    known.get(dataset.name) or self._ready(dataset, fetched, growing.get(dataset.name))
                    for dataset in asked
                ]
                datasets = tuple(one.dataset for one in ready)
                if any(dataset.marks for dataset in asked):
                    lines = ",\n".join(one.text or dataset_text(one.dataset) for one in ready)
                    replace_text(self.run.fetched, f"[{lines}]\n", force=False)
                for one in ready:
                    self._use(one)
            return _Gathered(asked, datasets, looked, fetched, has_room)

    def _finish(self, gathered: _Gathered) -> tuple[Plan, tuple[str, ...]]:
        """Put everything in its place."""
        if time.monotonic() - gathered.looked > _JUST_S:
            self._refuse_changed(gathered.asked)  # making the environment took its time
        self._pin(gathered.asked, gathered.datasets)
        self._place(gathered.datasets)
        fetched = gathered.fetched
        if fetched is not None and fetched.received_bytes and not gathered.has_room:
            from tfjob.datasets.eviction import evict  # noqa: PLC0415  # where something came

            evict(self.cache, limit_bytes=int(self.limit_gib * _GIB))
        return replace(self.plan, datasets=gathered.datasets), fetched.notes if fetched is not None else ()

    def _refuse_changed(self, asked: Sequence[DatasetPlan]) -> None:
        """Raise PreparationError if files of this machine are not those that were planned; of those that need a look now."""
        just_seen = self._is_just_planned()
        for dataset in asked:
            if has_local(dataset) and not (just_seen and (dataset.mode == "mount" or self._is_looked_at_late(dataset))):
                refuse_changed(dataset)

    @contextmanager
    def _growing(self, missing: Sequence[DatasetPlan]) -> Iterator[dict[str, GrowingTree]]:
        """The trees of large datasets, by their names, which are put together while what is missing comes."""
        large = [one for one in missing if is_large(one)]
        if not large:
            yield {}
            return
        from tfjob.datasets.growing import GrowingTree  # noqa: PLC0415  # see above

        growing = {one.name: GrowingTree(self.cache, one.files) for one in large}
        try:
            yield growing
        finally:
            for tree in growing.values():
                tree.end()

    def _fetch(
        self, missing: Sequence[DatasetPlan], growing: dict[str, GrowingTree], progress: Callable[[str], None]
    ) -> Fetched:
        from tfjob.datasets.fetch import fetch  # noqa: PLC0415  # 40 ms with all it stands on

        rerun_of = read_record(self.run).rerun_of or ""
        wanted = [one for dataset in missing for one in wanted_of(dataset, rerun_of)]
        trees = tuple(growing.values())

        def came(held: Sequence[tuple[str, Known]]) -> None:
            for tree in trees:
                tree.add(held)

        is_beside = threading.current_thread() is not threading.main_thread()
        if is_beside or not all(is_web(one.source) for one in wanted):
            gc.enable()  # the libraries of the stores make garbage, as others may who work meanwhile, and it may take hours
        try:
            return fetch(wanted, self.cache, self.settings, progress, standby=self.standby, came=came)
        finally:
            gc.disable()

    def _is_just_planned(self) -> bool:
        """Whether the command that submits has looked at the files just now: ten thousand are not looked at again at once.

        What was changed in between is noticed when the run ends. A plan that is run again has been made long before.
        """
        try:
            age_s = time.time() - os.stat(self.run.plan).st_mtime
            return 0 <= age_s < _JUST_S and read_record(self.run).rerun_of is None
        except (OSError, TfjobError):
            return False

    def _is_looked_at_late(self, dataset: DatasetPlan) -> bool:
        """Whether a dataset is copied here from files of this machine alone: who copies a file looks at it."""
        return dataset.mode == "download" and self.here and not dataset.marks

    def changes(self, plan: Plan) -> tuple[str, ...]:
        """What has changed in mounted datasets while the run went on, a sentence each."""
        return changes_of_mounts(plan, self.run, self.cache)

    def _with_sizes(self, dataset: DatasetPlan) -> DatasetPlan:
        """The dataset, with the bytes of its files where nodes fetch it and that is all that is not known."""
        if not self.nodes_fetch or not is_remote(dataset):
            return dataset
        from tfjob.datasets.sizes import web_sizes  # noqa: PLC0415  # see above

        marks = dict(zip((source for source, _, _ in dataset.files), dataset.marks, strict=True))
        unknown = [source for source, _, size in dataset.files if size < 0]
        sizes = web_sizes(unknown, self.settings) if unknown else None
        if sizes is None:
            return dataset
        return with_contents(
            dataset, {source: (size, marks[source].removeprefix(SHA256)) for source, size in sizes.items()}
        )

    def _is_left_to_nodes(self, dataset: DatasetPlan) -> bool:
        """Whether nodes fetch a dataset, and nothing of it has to be looked at here: bytes and SHA-256 of every file are known."""
        return self.nodes_fetch and is_remote(dataset) and all(size >= 0 for _, _, size in dataset.files)

    def _make_room(self, missing: Sequence[DatasetPlan]) -> bool:
        """Free what is needed for what is known to come; whether that is all there is to it."""
        sizes = [size for dataset in missing for source, _, size in dataset.files if source[0] != "/"]
        if max(sizes, default=0) <= 0:
            return False
        rows = [
            (source, mark, size)
            for dataset in missing
            for (source, _, size), mark in zip(dataset.files, dataset.marks, strict=True)
            if source[0] != "/"
        ]
        known = self.cache.index.known([source for source, mark, _ in rows if mark[:-_HEX] not in _SUMS])
        from tfjob.datasets.eviction import evict  # noqa: PLC0415  # see above

        coming = [(_content_of(mark, known.get(source)), size) for source, mark, size in rows]
        is_free = not evict(self.cache, limit_bytes=int(self.limit_gib * _GIB), coming=coming).is_busy
        return is_free and min(sizes) >= 0

    def _kept(self, dataset: DatasetPlan) -> _Ready | None:
        """A large dataset as an earlier run of the last hour had it: neither servers nor files need to be looked at."""
        if not is_large(dataset):
            return None
        from tfjob.datasets.at_hand import HOUR_S  # noqa: PLC0415  # see above

        try:
            kept = json.loads(self.cache.resolved(asked_for(dataset)).read_bytes())
            if not 0 <= time.time() - kept["checked"] < HOUR_S:
                return None
            tree = self.cache.known_tree(kept["tree"])
            own = {key: getattr(dataset, key) for key in ("name", "type", "mode", "registered")}
            encoded = {**kept["dataset"], **own}
            found = decode(DatasetPlan, encoded)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return _Ready(found, tree, text=json.dumps(encoded)) if tree is not None else None

    def _ready(self, dataset: DatasetPlan, fetched: Fetched | None, grown: GrowingTree | None) -> _Ready:
        """The dataset as it was fetched, and what one link can lead to, if it is mounted by one."""
        if not as_tree(dataset) or self._is_left_to_nodes(dataset):
            return _Ready(dataset)
        if not dataset.marks and (whole := whole_directory(dataset.files)) is not None:
            return _Ready(dataset, directory=whole)
        come = fetched.known if fetched is not None else {}
        held = {source: (one.size, one.sha256) for source, one in come.items()}
        now = with_contents(dataset, held) if dataset.marks else dataset
        all_known = bool(now.marks) and all([mark.startswith(SHA256) for mark in now.marks])  # noqa: C419  # very many
        tree = self.cache.tree(list(rows_of(now)), grown, digest=now.digest if all_known else "")
        if is_large(dataset):
            checked = min([one.checked for one in come.values() if one.checked], default=time.time())
            path = self.cache.resolved(asked_for(dataset))
            path.parent.mkdir(exist_ok=True)
            text = dataset_text(now)  # it has a row for each file: written twice, it is made once
            facts = json.dumps({"checked": checked, "tree": tree.name})
            replace_text(path, f'{facts[:-1]}, "dataset": {text}}}', force=False)
            return _Ready(now, tree, text=text)
        return _Ready(now, tree)

    def _use(self, ready: _Ready) -> None:
        """Have this run among the users of a tree, and the mount of a dataset that is one link in its place."""
        if ready.tree is not None:
            self.cache.use(ready.tree, self.run.path)
        to = ready.tree or ready.directory
        if self.here and ready.dataset.mode == "mount" and to is not None:
            link = self.run.datasets / ready.dataset.name
            clear(link)
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(to)

    def _place(self, datasets: Sequence[DatasetPlan]) -> None:
        for dataset in datasets if self.here else ():
            if dataset.mode == "mount" and as_tree(dataset):
                continue  # one link, see `_use`
            if self._is_looked_at_late(dataset):
                copy_for_tasks(dataset, self.run, [task.name for task in self.plan.tasks])
                continue
            sources = [
                (self.cache.object(sha256) if sha256 else source, name, size)
                for name, source, size, sha256 in rows_of(dataset)
            ]
            if dataset.mode == "download":
                for task in self.plan.tasks:
                    place(sources, self.run.datasets / task.name / dataset.name, copy=True)
            else:
                place(sources, self.run.datasets / dataset.name, copy=False)

    def _pin(self, asked: Sequence[DatasetPlan], datasets: Sequence[DatasetPlan]) -> None:
        """Note what registered versions hold, at their first use: they must always hold that. Raises PreparationError if they don't."""
        from tfjob.datasets.registered import note_contents  # noqa: PLC0415  # see above

        for before, now in zip(asked, datasets, strict=True):
            if now.registered is None or not now.marks or any(mark.startswith(_SEEN) for mark in before.marks):
                continue
            held = {source: (size, sha256) for _, source, size, sha256 in rows_of(now) if sha256}
            try:
                note_contents(now.registered, self.registry, held)
            except (OSError, NotFound, UsageError):  # removed meanwhile, or a full disk: the next use will
                continue
            except PreparationError:
                if not all(mark.startswith(SHA256) for mark in before.marks):  # it is what was asked for, then
                    raise


def _content_of(mark: str, known: Known | None) -> str:
    """The SHA-256 of what an address holds, as far as can be told before it is asked; or anything else."""
    is_it = known is not None and mark[:-_HEX] not in _SUMS and mark in ("", f"tag:{known.tag}")
    return known.sha256 if known is not None and is_it else mark[-_HEX:]


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Look for no garbage: there may be very many rows, and none among them. See also `RunData._fetch`."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
