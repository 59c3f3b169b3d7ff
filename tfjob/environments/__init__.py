"""The packages a job runs with: definition → lock → prefix → image.

A *definition* is what the job asks for, a *lock* is what was solved for one Python on one kind of machine (every
version and hash), a *prefix* is the directory the packages are in: built once for a lock, never changed, and shared
by every run that needs it. `definition_of` is pure; `Store` is where locks and prefixes are kept and made.
"""

from __future__ import annotations

from tfjob.environments.definition import Definition, definition_of
from tfjob.environments.prefix import Prefix, variables
from tfjob.environments.store import Store

__all__ = ["Definition", "Prefix", "Store", "definition_of", "variables"]
