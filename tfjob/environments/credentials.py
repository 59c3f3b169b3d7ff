"""Addresses without what lets one in: what is written into locks, logs and messages names places, not passwords."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["credentials_of", "with_credentials", "without_credentials"]

# user:password@ of any URL, a lone token@ of http; not the user of ssh, which is no secret and needed.
_USER = re.compile(r"(?<=://)[^/@\s\"':]*:[^/@\s\"']*@|(?<=http://)[^/@\s\"']+@|(?<=https://)[^/@\s\"']+@")
# The /t/TOKEN/ that conda channels with tokens have (conda's documentation, "tokens").
_TOKEN = re.compile(r"(?P<host>://[^/\s\"']+)/t/[^/\s\"']+(?=/)")
_URL = re.compile(r"[a-z+]+://[^\s\"'#]+")


def without_credentials(text: str) -> str:
    """Return a text with every user name, password and channel token taken out of the URLs in it."""
    return _TOKEN.sub(r"\g<host>", _USER.sub("", text))


def credentials_of(texts: Iterable[str]) -> dict[str, str]:
    """Return the URLs in these texts that have credentials, by the same URL without; neither with a revision (``@v1``)."""
    found = {}
    for text in texts:
        for url in _URL.findall(text):
            host, slash, path = url.partition("://")[2].partition("/")
            whole = f"{url.partition('://')[0]}://{host}{slash}{path.partition('@')[0]}"
            if (bare := without_credentials(whole)) != whole:
                found[bare] = whole
    return found


def with_credentials(text: str, known: Mapping[str, str]) -> str:
    """Return a text with the credentials put back into the URLs that start with a known one (see `credentials_of`)."""
    for bare, url in sorted(known.items(), key=lambda one: -len(one[0])):
        text = re.sub(rf"{re.escape(bare)}(?=[/@\s\"'#]|$)", url.replace("\\", r"\\"), text)
    return text
