"""What Python is started with on a Slurm job's nodes; the rest is loaded from here, compiled. Standard library only; any Python from 3.8.

    python -E -s -S start.py batch RUN_DIRECTORY [container]                       on the first node; see batch.py
    python -E -s -S start.py node RUN_DIRECTORY ATTEMPT_DIRECTORY WORD [UMASK]     on every node; see node.py
    python -E -s -S start.py container RUN_DIRECTORY ATTEMPT_DIRECTORY WORD        there, around its container; see container.py

Python compiles its first file at every start, so this one is short.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tfjob.engines.slurm.program import batch, container, node, step

    first: step.Step | None
elif sys.argv[1] == "batch":
    import step  # the order is the point: the nodes are called before the rest is loaded

    first = step.first_step(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "node")
    import batch
elif sys.argv[1] == "container":
    import container
else:
    import node


def main() -> int:
    """Run the program that is asked for."""
    if sys.argv[1] == "batch":
        return batch.main(sys.argv[2], first)
    if sys.argv[1] == "container":
        return container.Container(*sys.argv[2:5]).go()
    return node.main(*sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
