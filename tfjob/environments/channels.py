"""Conda channels: what their names stand for on this machine.

A name is looked for under the channel alias, which a site sets as conda has it: ``CONDA_CHANNEL_ALIAS``, or
``channel_alias`` in a .condarc (conda's documentation, "Using the .condarc conda configuration file"). ``defaults`` is
no channel but a name for several, which a site sets as ``default_channels`` there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.environments.credentials import without_credentials
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rattler import Channel, ChannelConfig

__all__ = ["ConfiguredChannels", "channel_alias"]


class ConfiguredChannels:
    """The channels of a definition, first choice first; those that packages name with ``::`` come after."""

    def __init__(self, names: Iterable[str], environ: Mapping[str, str]) -> None:
        """Resolve the names; ``nodefaults``, which says that no others are meant, is none.

        Raises PreparationError for what is no channel.
        """
        self._alias = channel_alias(environ)
        self._defaults = _default_channels(environ)
        self._urls: dict[str, None] = {}
        for name in names:
            if name == "defaults":
                for one in self._of_defaults():
                    self.url(one)
            elif name != "nodefaults":
                self.url(name)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the channels are, with whatever credentials their addresses have."""
        return tuple(self._urls)

    def url(self, name: str) -> str:
        """Return the address of a channel by name or address; it is one of the channels from now on.

        Raises PreparationError for what is no channel.
        """
        if name == "defaults":
            several = self._of_defaults()
            if len(several) > 1:
                raise PreparationError(
                    f"`defaults::` before a package: the channel may be any of {', '.join(several)}",
                    "Write one of them in front of the package.",
                )
            name = several[0]
        found = self._channel(name).base_url.rstrip("/")
        self._urls[found] = None
        return found

    def rattler(self) -> list[Channel]:
        """Return the channels for rattler."""
        return [self._channel(url) for url in self._urls]

    def _channel(self, name: str) -> Channel:
        from rattler import Channel, ChannelConfig, exceptions  # noqa: PLC0415  # 50 ms, for those who use a channel

        config: ChannelConfig = ChannelConfig(self._alias) if self._alias else ChannelConfig()
        try:
            return Channel(name, config)
        except exceptions.InvalidChannelError as error:
            shown, said = without_credentials(name), ", ".join(without_credentials(str(error)).splitlines())
            raise PreparationError(
                f"the channel `{shown}` has neither a name nor an address that conda knows: {said}",
                "Write a channel's name, such as `conda-forge`, or its address, under `channels:`.",
            ) from error

    def _of_defaults(self) -> tuple[str, ...]:
        """Return what ``defaults`` stands for. Raises PreparationError where nothing is configured."""
        if not self._defaults:
            raise PreparationError(
                "the channel `defaults` is whatever `default_channels` of .condarc says, and that is not set here",
                "Write `conda-forge`, or the channel's address, under `channels:`.",
            )
        return self._defaults


def channel_alias(environ: Mapping[str, str]) -> str | None:
    """Return the address under which channels' names are looked for, None where nothing is configured."""
    if alias := environ.get("CONDA_CHANNEL_ALIAS"):
        return _slash(alias)
    found = next((found for found in _configured(environ, "channel_alias") if isinstance(found, str)), None)
    return _slash(found) if found is not None else None


def _default_channels(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return what ``defaults`` stands for, nothing where it is not configured."""
    if listed := environ.get("CONDA_DEFAULT_CHANNELS"):
        found: list[Any] = listed.split(",")
    else:
        found = next((found for found in _configured(environ, "default_channels") if isinstance(found, list)), [])
    return tuple(str(one).strip() for one in found if one and one != "defaults")


def _configured(environ: Mapping[str, str], key: str) -> Iterator[Any]:
    """Give the values of a setting in the .condarc files, the one that counts first."""
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
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(found, dict) and key in found:
            yield found[key]


def _slash(alias: str) -> str:
    alias = alias if "://" in alias else Path(alias).expanduser().absolute().as_uri()
    return alias.rstrip("/") + "/"
