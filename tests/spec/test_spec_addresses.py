"""Addresses of data: what is secret in them is refused, and is in no message."""

from __future__ import annotations

import pytest

from tfjob.spec.addresses import address_objection, shown_address

HIDDEN = "hunter2hunter2hunter2"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"https://{HIDDEN}@host/x", 'found a name or a token before the host of the address "https://host/x"'),
        (f"HTTP://{HIDDEN}@host/x", 'found a name or a token before the host of the address "HTTP://host/x"'),
        (f"https://me:{HIDDEN}@host/x", 'found a password in the address "https://host/x"'),
        (f"https://:{HIDDEN}@host/x", 'found a password in the address "https://host/x"'),
        (f"sftp://me:{HIDDEN}@host/x", 'found a password in the address "sftp://host/x"'),
        (
            f"https://host/x?a=b&private_token={HIDDEN}",
            'found a secret (private_token) in the address "https://host/x"',
        ),
        (f"https://host/x?API-Key={HIDDEN}", "found a secret (API-Key) in"),
        (f"https://host/x?apikey={HIDDEN}", "found a secret (apikey) in"),
        (f"https://host/x?accessToken={HIDDEN}", "found a secret (accessToken) in"),
        (f"https://host/x?client_secret={HIDDEN}", "found a secret (client_secret) in"),
        (f"https://host/x?key=AIza{HIDDEN[:20]}{HIDDEN[:15]}", "found a secret (key) in"),
        (f"https://host/x?with=ghp_{HIDDEN}", "found a secret (with) in"),
        (f"https://host/x?with=eyJ{HIDDEN}.eyJ{HIDDEN}.{HIDDEN}", "found a secret (with) in"),
        (f"https://host/x?sig={HIDDEN}", "found a signature (sig) in"),
        (f"https://host/x?Signature={HIDDEN}&Expires=1", "found a signature (Signature) in"),
        (f"https://host/x?x-goog-signature={HIDDEN}", "found a signature (x-goog-signature) in"),
        (f"https://me:{HIDDEN}@host:99999/x", 'found "https://host:99999/x", whose host or port can\'t be read'),
        (f"https://me:hunter/{HIDDEN}@host/x", 'found "https://host/x", whose host or port can\'t be read'),
        (f"https://me:hunter?{HIDDEN}@host/x", 'found "https://host/x", whose host or port can\'t be read'),
        (f"https://[host/x?token={HIDDEN}", 'found "https://[host/x", whose host or port can\'t be read'),
        (f"https://me:{HIDDEN}@h\u2100st/x", "whose host or port can't be read"),
        (f"https://host/?file={HIDDEN}", 'found "https://host/", whose last part is no name of a file'),
        (f"ftp://me:{HIDDEN}@host/x", 'found the address "ftp://host/x"; https://, http://'),
        (f"s3:///key?x={HIDDEN}", 'found "s3:///key", which names no bucket'),
    ],
)
def test_what_is_secret_is_refused_and_not_shown(address: str, message: str) -> None:
    objection = address_objection(address)
    assert objection is not None
    assert message in objection[0]
    assert HIDDEN not in "".join(objection)
    assert "hunter" not in "".join(objection)
    assert HIDDEN not in shown_address(address)


@pytest.mark.parametrize(
    "address",
    [
        "https://host/x",
        "https://host/a//b@c/x",
        "https://host:8443/pkg@1.0/x.csv?version=2",
        "https://host/x?key=train/images/0001.png",
        "https://host/x?key=imagenet-train-2012&design=1&tokens=5&author=me&compass=n&monkey=1&keys=a&pass=ascending",
        "https://host/x?hf_dataset=hf_train-2024-and-its-words.csv",
        "sftp://me@host/x",
        "abfss://container@account.dfs.core.windows.net/x",
    ],
)
def test_what_is_not_secret_is_allowed(address: str) -> None:
    assert address_objection(address) is None


def test_an_address_is_shown_without_what_follows_the_file() -> None:
    assert shown_address("https://me@host:80/pkg@1.0/x.csv?q=1#a") == "https://host:80/pkg@1.0/x.csv"
    assert shown_address("https://host/a//b@c/x") == "https://host/a//b@c/x"
