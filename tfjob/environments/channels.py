"""Conda channels: what their names stand for on this machine.

A name is looked for under the channel alias, which a site sets as conda has it: ``CONDA_CHANNEL_ALIAS``, or
``channel_alias`` in a .condarc (conda's documentation, "Using the .condarc conda configuration file").
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rattler import Channel, ChannelConfig

__all__ = ["ConfiguredChannels", "channel_alias"]


class ConfiguredChannels:
    """The channels of a definition, first choice first; those that packages name with ``::`` come after."""

    def __init__(self, names: Iterable[str], environ: Mapping[str, str]) -> None:
        """Resolve the names; ``nodefaults``, which says that no others are meant, is none."""
        self._alias = channel_alias(environ)
        self._urls: dict[str, None] = {}
        for name in names:
            if name != "nodefaults":
                self.url(name)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the channels are, with whatever credentials their addresses have."""
        return tuple(self._urls)

    def url(self, name: str) -> str:
        """Return the address of a channel by name or address; it is one of the channels from now on."""
        found = self._channel(name).base_url.rstrip("/")
        self._urls[found] = None
        return found

    def rattler(self) -> list[Channel]:
        """Return the channels for rattler."""
        return [self._channel(url) for url in self._urls]

    def _channel(self, name: str) -> Channel:
        from rattler import Channel, ChannelConfig  # noqa: PLC0415  # 50 ms, only for those who use a channel

        config: ChannelConfig = ChannelConfig(self._alias) if self._alias else ChannelConfig()
        return Channel(name, config)


def channel_alias(environ: Mapping[str, str]) -> str | None:
    """Return the address under which channels' names are looked for, None where nothing is configured."""
    if alias := environ.get("CONDA_CHANNEL_ALIAS"):
        return _slash(alias)
    import yaml  # noqa: PLC0415  # 30 ms, only for those who use a channel

    home = Path(environ.get("HOME") or Path.home())
    root = Path(environ["CONDA_ROOT"]) if environ.get("CONDA_ROOT") else None
    files = [Path(environ["CONDARC"])] if environ.get("CONDARC") else []
    files += [home / ".condarc", home / ".conda" / ".condarc", home / ".config" / "conda" / ".condarc"]
    files += [root / ".condarc"] if root else []
    files += [Path("/etc/conda/.condarc"), Path("/etc/conda/condarc")]
    for file in files:
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(found, dict) and isinstance(found.get("channel_alias"), str):
            return _slash(found["channel_alias"])
    return None


def _slash(alias: str) -> str:
    alias = alias if "://" in alias else Path(alias).expanduser().absolute().as_uri()
    return alias.rstrip("/") + "/"
