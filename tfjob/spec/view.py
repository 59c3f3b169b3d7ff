"""Typed questions to a tree that the schema has been compared with.

Every question has three answers: the value where it is given and sound, the schema's default where it is not given, and
None where it has a problem of its own, so that nobody builds on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfjob.spec import schema as schemas
from tfjob.spec.tree import ListNode, MapNode, Node, ScalarNode, Where, find, key_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.errors import Problem

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """What a job file says; `root` is its tree after `tfjob.spec.messages.check`."""

    root: Node

    def node(self, *where: str | int) -> Node | None:
        """Return the node at `where`, or None where nothing is given."""
        return find(self.root, where)

    def has(self, *where: str | int) -> bool:
        """Return whether anything is given at `where`, sound or not."""
        return self.node(*where) is not None

    def text(self, *where: str) -> str | None:
        """Return the text at `where`, or its default."""
        node = self.node(*where)
        if node is None:
            value = schemas.default(*where)
            return value if isinstance(value, str) else None
        return node.value if isinstance(node, ScalarNode) and isinstance(node.value, str) else None

    def number(self, *where: str) -> float | None:
        """Return the number at `where`, or its default."""
        node = self.node(*where)
        value = schemas.default(*where) if node is None else node.value if isinstance(node, ScalarNode) else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def count(self, *where: str) -> int | None:
        """Return the whole number at `where`, or its default."""
        number = self.number(*where)
        return None if number is None else int(number)

    def flag(self, *where: str) -> bool | None:
        """Return the truth value at `where`, or its default."""
        node = self.node(*where)
        value = schemas.default(*where) if node is None else node.value if isinstance(node, ScalarNode) else None
        return value if isinstance(value, bool) else None

    def entries(self, *where: str) -> dict[str, Node]:
        """Return the entries of the mapping at `where`, in file order."""
        node = self.node(*where)
        return node.entries if isinstance(node, MapNode) else {}

    def texts(self, *where: str) -> Iterator[tuple[tuple[str | int, ...], ScalarNode]]:
        """Yield the sound scalars of the list at `where`, or the one scalar there, each with the way to it."""
        node = self.node(*where)
        if isinstance(node, ListNode):
            for index, item in enumerate(node.items):
                if isinstance(item, ScalarNode) and not item.bad:
                    yield (*where, index), item
        elif isinstance(node, ScalarNode) and not node.bad:
            yield where, node

    def pairs(self, *where: str) -> tuple[tuple[str, str], ...]:
        """Return the entries of the mapping at `where` with their values as written."""
        entries = self.entries(*where).items()
        return tuple((key, node.text) for key, node in entries if isinstance(node, ScalarNode))

    def problem_at_key(self, where: Where, message: str, hint: str = "") -> Problem:
        """Return a problem that points at the key of `where`."""
        return key_place(self.root, where).problem(where, message, hint)

    def problem_at_value(self, where: Where, message: str, hint: str = "") -> Problem:
        """Return a problem that points at the value of `where`, or at what would hold it."""
        node = find(self.root, where)
        place = key_place(self.root, where) if node is None else node.place
        return place.problem(where, message, hint)
