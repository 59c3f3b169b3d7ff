"""Compile Python files to bytecode: ``python compiler.py PROCESSES STAGE FINAL < list-of-files``.

Run by the interpreter the bytecode is for, so: standard library only, any Python from 3.8. The files are given relative
to STAGE, where they stand; tracebacks shall name FINAL, where they will. The bytecode is marked as never to be checked
against its source (PEP 552): a prefix does not change, and looking is a system call per import. Files that are no valid
Python (templates, tests of other tools) are left without. Ends with 1, and says why on stderr, when the bytecode of one
cannot be written.
"""

from __future__ import annotations

import os
import py_compile
import sys
import warnings


def main() -> int:
    """Share the files among PROCESSES processes, this one among them."""
    processes, stage, final = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    files = sys.stdin.read().splitlines()
    warnings.simplefilter("ignore")
    children = []
    for number in range(1, processes):
        child = os.fork()
        if child == 0:
            os._exit(compile_all(files[number::processes], stage, final))
        children.append(child)
    failed = compile_all(files[::processes], stage, final)
    for child in children:
        failed |= os.waitpid(child, 0)[1]
    return 1 if failed else 0


def compile_all(files: list[str], stage: str, final: str) -> int:
    """Compile these files; 1 when a file could not be read or its bytecode not be written."""
    for name in files:
        try:
            py_compile.compile(
                f"{stage}/{name}",
                dfile=f"{final}/{name}",
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except OSError as error:
            sys.stderr.write(f"error: {error.strerror}: {name}\n")
            return 1
        except Exception:  # noqa: BLE001, S112 (whatever is wrong with a file, it is simply not compiled)
            continue
    return 0


if __name__ == "__main__":
    sys.exit(main())
