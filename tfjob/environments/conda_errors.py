"""What rattler says when it fails, in words that say what to do."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from typing import TYPE_CHECKING

from tfjob.environments.credentials import without_credentials
from tfjob.errors import PreparationError, TfjobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["HASH_HINT", "STALLED_HINT", "explained"]

_LINES_MAX = 24
_FULL = ("no space left on device", "os error 28", "quota exceeded", "os error 122")
_VIRTUAL = re.compile(r"(__\w+)[^\n,]*, for which no candidates were found")
_UNMET = re.compile(r"(?P<name>[a-z0-9][\w.-]*) [^\n,]+, for which no candidates were found")
_MISSING = re.compile(r"No candidates were found for (\S+)")
_VIRTUAL_HINTS = {
    "__cuda": "It wants a GPU's driver: use `base: gpu`, or a machine with one, or the package's CPU build.",
    "__glibc": "It wants a newer C library: use a newer base image, or an older version of the package.",
}
_CHANNEL_HINT = (
    "Check the channel's name or address under `channels:`. Names are looked for under `channel_alias` of .condarc, "
    "or CONDA_CHANNEL_ALIAS."
)
HASH_HINT = (
    "The file in the channel is not the one that was locked. If that is meant to be, lock anew (`tfjob env lock`); else "
    "ask whoever keeps the channel."
)
_NETWORK_HINT = "Check the network, a proxy (HTTPS_PROXY), and the channel's address; then submit again."
STALLED_HINT = (
    "The channel sent nothing for too long (CONDA_REMOTE_READ_TIMEOUT_SECS, 60 s unless set). " + _NETWORK_HINT
)
_NO_CHANNEL_HINT = "What answers at that address is no channel (a login page?). " + _CHANNEL_HINT
_OTHER_HINT = "Check the channel and the store's disk; then submit again."
# What rattler says (in lower case) → what to do; the first that fits.
_HINTS = {
    "hash mismatch": HASH_HINT,
    "could not find subdir": "That address has no `repodata.json`, so it is no channel. " + _CHANNEL_HINT,
    "failed to parse repodata": _NO_CHANNEL_HINT,
    "failed to decode zstd": _NO_CHANNEL_HINT,
    "401 unauthorized": "The channel wants a login: store one with `rattler auth login`, or put it into ~/.netrc.",
    "403 forbidden": "The channel refuses this user; check the credentials for it.",
    "operation timed out": "The channel did not answer in time (a request has CONDA_REMOTE_READ_TIMEOUT_SECS, 60 s "
    "unless set). " + _NETWORK_HINT,
    "invalid peer certificate": "The channel's certificate is of nobody this machine trusts: name the site's own in SSL_CERT_FILE.",
    "error sending request": _NETWORK_HINT,
    "dns error": _NETWORK_HINT,
    "404": "The channel lists the package, but does not have its file any more. Lock anew (`tfjob env lock`).",
    "longer than the placeholder": "Packages with programs in them have room for 255 bytes of path: put the store where its "
    "path is shorter (`store:` in config.yml, or TFJOB_STORE).",
    "permission denied": "Make the directory writable for you, or set `store:` in the config.yml of the workspace.",
}


@contextlib.contextmanager
def explained(done: str, place: str = "", channels: Sequence[str] = (), specs: Sequence[str] = ()) -> Iterator[None]:
    """Translate rattler's errors; `done` completes "the environment's conda packages could not be …".

    `place` (its name), `channels` and `specs` (what was asked for) are told where a solve fails. Raises
    PreparationError, and OSError for a full disk.
    """
    from rattler import exceptions  # noqa: PLC0415  # 50 ms, only for those who solve or install

    began_s = time.monotonic()
    try:
        yield
    except TfjobError:
        raise
    except exceptions.SolverError as error:
        raise _unsolvable(str(error), place, channels, specs) from error
    except Exception as error:
        if not type(error).__module__.startswith(("exceptions", "rattler")):
            raise
        text = without_credentials(str(error))
        low = text.lower()
        if any(words in low for words in _FULL):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        hint = next((hint for words, hint in _HINTS.items() if words in low), _OTHER_HINT)
        if "timed out" in low:
            text += f"\nGiven up after {time.monotonic() - began_s:.0f} s."
        raise PreparationError(
            f"the environment's conda packages could not be {done}.\n  {_shown(text.splitlines())}", hint
        ) from error


def _unsolvable(said: str, place: str, channels: Sequence[str], specs: Sequence[str]) -> PreparationError:
    """Return why no set of packages fits, what was asked for and where, and what to do."""
    text = without_credentials(said).removeprefix("Cannot solve the request because of: ")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    asked = ", ".join(without_credentials(spec) for spec in specs)
    where = "\n".join(f"    {without_credentials(channel)}" for channel in channels) or "    (none)"
    hint = "Loosen one of the versions named, or leave it out and let the solver choose."
    if missing := _MISSING.search(text):
        hint = f"Check the name and version of {missing[1]}, or add the channel that has it under `channels:`."
    for wanted in _UNMET.finditer(text):
        own = [spec for spec in specs if re.split(r"[\s=<>!~\[]", spec, maxsplit=1)[0] == wanted["name"] != spec]
        if own:
            hint = f"`{own[0]}` is asked for too, and no {wanted['name']} is both: loosen one of them."
    if virtual := _VIRTUAL.search(text):
        hint = _VIRTUAL_HINTS.get(virtual[1], f"{place[:1].upper()}{place[1:]} does not have {virtual[1]}.")
    message = f"the environment's conda packages could not be chosen for {place}.\n  {_shown(lines)}"
    return PreparationError(f"{message}\n  Asked for: {asked}\n  Channels asked:\n{where}", hint)


def _shown(lines: Sequence[str]) -> str:
    kept = [line for line in lines if line.strip()]
    if len(kept) > _LINES_MAX:
        kept = [*kept[: _LINES_MAX // 2], "…", *kept[-_LINES_MAX // 2 :]]
    return "\n  ".join(kept)
