"""``POST /uploads``: a presigned POST with which a caller uploads an input image straight to S3.

Images may thereby be larger than API Gateway would pass on. A request names the image by its ``upload_id``; URLs from
callers are never fetched.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..aws.s3 import PresignedPosts
from ..contract.ids import MAX_UPLOAD
from ..contract.request import json_object, validated
from ..contract.upload import CONTENT_TYPES, UploadRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ..aws.store import TaskStore
    from ..settings import Settings

LIFETIME = 600
"""Seconds for which a form is valid: enough to send MAX_UPLOAD over a slow connection."""


class Uploads:
    """Makes upload forms. Stores nothing: an upload that never comes leaves nothing behind."""

    def __init__(self, settings: Settings, now: Callable[[], datetime], new_id: Callable[[], str]) -> None:
        self._posts, self._now, self._new_id = PresignedPosts(settings), now, new_id

    def presign(self, store: TaskStore, body: bytes) -> dict[str, Any]:
        """An UploadResponse as JSON data, for the store's tenant. Raises InvalidRequest and ServiceFault."""
        wanted = validated(UploadRequest, json_object(body or b"{}"))
        upload_id, expires_at = self._new_id(), self._now() + timedelta(seconds=LIFETIME)
        url, fields = self._posts.sign(store.upload_key(upload_id), wanted.content_type, MAX_UPLOAD, LIFETIME)
        return {
            "upload_id": upload_id,
            "url": url,
            "fields": fields,
            "max_bytes": MAX_UPLOAD,
            "content_types": list(CONTENT_TYPES),
            "expires_at": expires_at.isoformat(),
        }
