"""The resources: one file each, at repository/type/tag below the broker's directory."""

import contextlib
import os

from sealrun_protocol.resource_uri import ResourceName

from sealrun_broker import bounds, directory
from sealrun_broker.errors import BrokerError


class Store:
    """All resources of one broker."""

    def __init__(self, path: str) -> None:
        self._path = path

    def get(self, name: ResourceName) -> bytes | None:
        """The content, or None where there is no such resource. Raises BrokerError."""
        try:
            with open(self._file(name), "rb") as stream:
                content = stream.read(bounds.RESOURCE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise BrokerError(f"cannot read resource {name}: {error.strerror}") from error
        if len(content) > bounds.RESOURCE_BYTES:
            raise BrokerError(
                f"cannot read resource {name}: it is longer than {bounds.RESOURCE_BYTES} bytes"
            )
        return content

    def put(self, name: ResourceName, content: bytes) -> None:
        """Store or replace. Raises BrokerError."""
        if len(content) > bounds.RESOURCE_BYTES:
            raise BrokerError(
                f"cannot store resource {name}: it is longer than {bounds.RESOURCE_BYTES} bytes"
            )
        try:
            for depth in (1, 2):  # os.makedirs gives its mode to the last folder only
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.join(self._path, *name[:depth]), 0o700)
            directory.write(self._file(name), content)
        except OSError as error:
            raise BrokerError(f"cannot store resource {name}: {error.strerror}") from error

    def delete(self, name: ResourceName) -> bool:
        """Remove; False where there is no such resource. Raises BrokerError."""
        try:
            os.unlink(self._file(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise BrokerError(f"cannot delete resource {name}: {error.strerror}") from error
        folder = os.path.dirname(self._file(name))
        with contextlib.suppress(OSError):  # not empty: others of its type remain
            os.rmdir(folder)
            os.rmdir(os.path.dirname(folder))
        return True

    def _file(self, name: ResourceName) -> str:
        return os.path.join(self._path, *name)
