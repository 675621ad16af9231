"""Credentials of the local object store, in this process's environment.

boto3 and the processes of the farm read them there.
"""

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator

from workers.contract.errors import ServerFailed

#: Prefixes of variables that belong to other programs of the user. The processes of a local farm need none of them.
_FOREIGN = ("AWS_", "CELERY_", "RCLONE_")

#: Held by the farm whose credentials are in the environment.
_environment = threading.Lock()


@contextlib.contextmanager
def new_credentials() -> Iterator[None]:
    """Replace the variables of AWS, Celery and rclone by new random credentials, and restore them at the end.

    Raises ServerFailed if another farm of this process has done so.
    """
    if not _environment.acquire(blocking=False):
        raise ServerFailed("this process runs a farm already; wait for its end, or start another process")
    before = _foreign()
    try:
        _replace(
            {
                "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
                "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(24),
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            }
        )
        yield
    finally:
        _replace(before)
        _environment.release()


def _foreign() -> dict[str, str]:
    return {variable: text for variable, text in os.environ.items() if variable.startswith(_FOREIGN)}


def _replace(variables: dict[str, str]) -> None:
    for variable in _foreign():
        del os.environ[variable]
    os.environ.update(variables)
