"""The expressions of a job file: those whose value is known now are replaced, the others checked and left.

Known at load, in every text: ``env.NAME`` (of the submitting shell) and ``parameters.NAME`` (of the file itself). Known
only to a run, so allowed only in command, arguments and environment_variables: datasets, outputs, the run and
its tasks. Those texts stay templates (`tfjob.spec.expressions`); all others become plain text. In command, a shell
line, values are quoted (`tfjob.spec.shell`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tfjob.spec import schema as schemas
from tfjob.spec.expressions import ExpressionError, Reference, names, parse, substitute
from tfjob.spec.nearest import nearest
from tfjob.spec.scalars import resolve
from tfjob.spec.shell import fill, literal
from tfjob.spec.tree import ListNode, MapNode, Node, ScalarNode, Where, find, rebuilt, spoiled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tfjob.errors import Problem

__all__ = ["LATE_NAMES", "apply"]

LATE_NAMES = (
    *("outputs.dir", "run.id", "run.dir", "logs.dir"),
    *("task.index", "task.type", "task.name", "node.index", "restart.count"),
)
_TEMPLATES = ("command", "arguments", "environment_variables")
_DECLARED = {"dataset": ("dataset",), "outputs": ("outputs", "named"), "search_space": ("sweep", "search_space")}


def apply(root: Node, environ: Mapping[str, str]) -> tuple[Node, list[Problem]]:
    """Return `root` with the expressions known at load replaced, and the problems of all expressions."""
    problems: list[Problem] = []
    late = set(LATE_NAMES)
    for section, where in _DECLARED.items():
        late |= {f"{section}.{name}" for name in _entries(root, where)}

    def replace_parameters(where: Where, node: Node) -> Node:
        return _replaced(node, where, names_without_parameters, problems) if _is_text(node) else node

    named = find(root, ("secrets",))
    secrets = (
        {item.text for item in named.items if isinstance(item, ScalarNode)} if isinstance(named, ListNode) else set()
    )
    names_without_parameters = _Names(environ, secrets, None, late)
    parameters = _entries(root, ("parameters",))
    settled = {name: rebuilt(node, replace_parameters, ("parameters", name)) for name, node in parameters.items()}
    known = _Names(
        environ, secrets, {name: node for name, node in settled.items() if isinstance(node, ScalarNode)}, late
    )

    def replace_everywhere(where: Where, node: Node) -> Node:
        if where[:1] == ("parameters",):
            found = settled.get(str(where[1])) if len(where) == 2 else None
            return found if found is not None else node
        return _replaced(node, where, known, problems) if _is_text(node) else node

    return rebuilt(root, replace_everywhere), problems


@dataclass(frozen=True)
class _Names:
    """What expressions may refer to; `parameters` None where they must not refer to one another."""

    environ: Mapping[str, str]
    secrets: set[str]
    parameters: dict[str, ScalarNode] | None
    late: set[str]

    def value(self, name: str) -> str | None:
        section, _, rest = name.partition(".")
        if section == "env":
            return self.environ.get(rest)
        if section == "parameters" and self.parameters is not None and rest in self.parameters:
            return self.parameters[rest].text
        return None

    def objection(self, name: str, *, late_allowed: bool) -> tuple[str, str] | None:
        """Return message and hint for what is wrong with `name`, or None."""
        section, _, rest = name.partition(".")
        if name in self.late:
            if late_allowed:
                return None
            allowed = "it is allowed in command, arguments and environment_variables"
            return f"found ${{{{ {name} }}}}, whose value only a run has; {allowed}", ""
        if section == "env":
            return self._variable_objection(rest)
        if section == "parameters":
            return self._parameter_objection(rest)
        if section in _DECLARED:
            return self._undeclared(name, section)
        every = ["env.NAME", "parameters.NAME", *sorted(self.late)]
        guess = nearest(name, [*self.late, *(f"parameters.{key}" for key in self.parameters or ())])
        hint = f"Did you mean {guess}?" if guess else "Write $${{ for the text ${{ itself."
        return f"found the unknown name {name}; {', '.join(every)} are allowed", hint

    def _variable_objection(self, name: str) -> tuple[str, str] | None:
        if name not in self.environ:
            guess = nearest(name, self.environ) if name else None
            hint = f"Did you mean env.{guess}?" if guess else f"Set it: export {name or 'NAME'}=…"
            return f"found env.{name}, which is not set in this shell; a variable that is set is allowed", hint
        if name in self.secrets:
            allowed = "a variable that is not among the secrets is allowed, for expressions are recorded"
            return f"found env.{name}, which is a secret; {allowed}", "Tasks have it as a variable of their own."
        if not _is_storable(self.environ[name]):
            return f"found env.{name}, whose value is not UTF-8 text; text is allowed", ""
        return None

    def _parameter_objection(self, name: str) -> tuple[str, str] | None:
        if self.parameters is None:
            return f"found parameters.{name} in a parameter; env.NAME is allowed here", "Write the value itself."
        if name in self.parameters:
            return None
        if not self.parameters:
            return f"found parameters.{name}; the file has no parameters", "Add it under parameters."
        guess = nearest(name, self.parameters)
        hint = f"Did you mean parameters.{guess}?" if guess else "Add it under parameters."
        allowed = f"{', '.join(self.parameters)} can be used"
        return f"found parameters.{name}, which is not among the parameters; {allowed}", hint

    def _undeclared(self, name: str, section: str) -> tuple[str, str]:
        declared = sorted(known for known in self.late if known.startswith(f"{section}."))
        guess = nearest(name.partition(".")[2], [known.partition(".")[2] for known in declared])
        hint = f"Did you mean {section}.{guess}?" if guess else f"Declare it under {'.'.join(_DECLARED[section])}."
        if not declared:
            return f"found {name}; no {_DECLARED[section][-1].replace('_', ' ')} is declared", hint
        return f"found {name}, which is not declared; {', '.join(declared)} can be used", hint


def _is_storable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_text(node: Node) -> bool:
    return isinstance(node, ScalarNode) and isinstance(node.value, str) and not node.bad and "${{" in node.value


def _entries(root: Node, where: Where) -> dict[str, Node]:
    node = find(root, where)
    return dict(node.entries) if isinstance(node, MapNode) else {}


def _replaced(node: Node, where: Where, known: _Names, problems: list[Problem]) -> Node:
    """Return `node`, a text, with its expressions replaced as far as they are known."""
    if not isinstance(node, ScalarNode):
        return node
    is_template = bool(where) and where[0] in _TEMPLATES
    try:
        found = names(node.text)
    except ExpressionError as error:
        problems.append(node.place.problem(where, str(error)))
        return spoiled(node)
    objections = [objection for name in found if (objection := known.objection(name, late_allowed=is_template))]
    if objections:
        problems += [node.place.problem(where, message, hint) for message, hint in objections]
        return spoiled(node)
    if where == ("command",):
        text = fill(node.text, known.value, literal, final=False)
    else:
        text = substitute(node.text, known.value, final=not is_template)
    said = schemas.lookup(where) or {}
    pieces = parse(node.text)
    value: str | float | bool | None = text
    if len(pieces) == 1 and isinstance(pieces[0], Reference) and "string" not in schemas.types(said):
        value = resolve(text)[0]  # a number or truth value is wanted here: the text is read as one
    return replace(node, value=value, text=text, plain=False)
