"""The deployment that the environment names: what a command needs of it, before it is used."""

from __future__ import annotations

from ..settings import Settings


def deployment(*names: str) -> Settings:
    """Its settings. Raises SettingsError, with an example, if one of ``names`` is unset, or without credentials."""
    from ..aws.credentials import require_credentials

    return require_credentials(Settings.load().require(*names))
