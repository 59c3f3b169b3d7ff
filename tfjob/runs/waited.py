"""How long a job of Slurm has waited for its nodes, as far as that is known here."""

from __future__ import annotations

from tfjob.engines.slurm.engine import JobView

__all__ = ["Waited"]


class Waited:
    """The time between looks that both saw the job wait: what it does while Slurm can't be asked is nobody's to count."""

    def __init__(self, now: float) -> None:
        self.seconds = 0.0
        self._looked = now
        self._was_known = True

    def look(self, view: JobView, now: float) -> float:
        """Note how the job is at a moment (s, of a clock that only goes forward). Returns how long it has waited by then."""
        if view.stage == "running":
            self.seconds = 0.0
        elif view.is_known and self._was_known:
            self.seconds += now - self._looked
        self._looked, self._was_known = now, view.is_known
        return self.seconds
