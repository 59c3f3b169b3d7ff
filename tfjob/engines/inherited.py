"""What a task inherits from the shell that submitted it: little, so that a job runs alike on a laptop, in a container, on a node.

Everything else is named in the job file: `environment_variables`, or `secrets` for what must not be written down.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["base_path", "inherited_environment", "travelling_environment"]

_NAMES = frozenset(
    (
        *("HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM"),
        *("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "XLA_FLAGS"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    )
)
_PREFIXES = ("LC_", "XDG_")
_TRAVELLING = frozenset(
    (
        *("TZ", "TERM", "XLA_FLAGS"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
    )
)
_LOCALES = ("C", "POSIX", "C.UTF-8", "C.utf8")
"""Locales that every C library has. Others are files of the machine, and programs complain where they are not."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def inherited_environment(environ: Mapping[str, str], secrets: tuple[str, ...]) -> dict[str, str]:
    """The variables of `environ` that a task gets: those of the machine (home, language, certificates, proxies), and the secrets."""
    named = {name: value for name, value in environ.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return {**named, **{name: environ[name] for name in secrets if name in environ}, "PATH": base_path(environ)}


def travelling_environment(environ: Mapping[str, str], secrets: tuple[str, ...]) -> dict[str, str]:
    """The variables of `environ` that a task in a container gets: those that name nothing of this machine, and the secrets.

    Home, shell, temporary directory, PATH, libraries, CUDA and certificates are the image's, or the engine's business.
    """
    locales = {
        name: value
        for name, value in environ.items()
        if (name == "LANG" or name.startswith("LC_")) and value in _LOCALES
    }
    named = {name: value for name, value in environ.items() if name in _TRAVELLING}
    return {**named, **locales, **{name: environ[name] for name in secrets if name in environ}}


def base_path(environ: Mapping[str, str]) -> str:
    """The submitting shell's PATH without the virtual environment that is active there."""
    active = environ.get("VIRTUAL_ENV")
    entries = environ.get("PATH", _DEFAULT_PATH).split(":")
    return ":".join(entry for entry in entries if entry and not (active and entry.startswith(f"{active}/")))
