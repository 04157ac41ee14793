"""Are there credentials at all? A command asks first: without any, the clients look half a minute for a host's role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SettingsError
from ..process import names_credentials

if TYPE_CHECKING:
    from ..settings import Settings

NONE = "no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def require_credentials(settings: Settings) -> Settings:
    """Returns the settings. Raises SettingsError where neither variables nor files nor this host have credentials."""
    if names_credentials() or settings.shared_credentials:
        return settings
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        found = botocore.session.Session().get_credentials()  # asks the host, for a second
    except BotoCoreError as fault:
        raise SettingsError(f"AWS cannot be used: {fault}") from fault
    if found is None:
        raise SettingsError(NONE)
    return settings
