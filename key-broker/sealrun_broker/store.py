"""The resources: one file each, at repository/type/tag below the broker's directory, encrypted.

A file is `SRB1`, a nonce of 12 bytes, and AES-256-GCM of the content; the resource's name is
authenticated with it, so that nobody makes one resource pass for another by renaming. Whoever has
both the folder and the key has the resources: the key may be kept elsewhere (`--store-key`).
"""

import contextlib
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sealrun_protocol.resource_uri import ResourceName

from sealrun_broker import bounds, directory
from sealrun_broker.errors import BrokerError

KEY_BYTES: Final = 32
_MAGIC: Final = b"SRB1"
_NONCE_BYTES: Final = 12
_OVERHEAD: Final = len(_MAGIC) + _NONCE_BYTES + 16


def read_key(path: str) -> bytes:
    """The key of a store. Raises BrokerError."""
    key = directory.read(path)
    if len(key) != KEY_BYTES:
        raise BrokerError(f"cannot use {path}: it is not a key of {KEY_BYTES} bytes")
    return key


class Store:
    """All resources of one broker."""

    def __init__(self, path: str, key: bytes) -> None:
        self._path = path
        self._cipher = AESGCM(key)

    def get(self, name: ResourceName) -> bytes | None:
        """The content, or None where there is no such resource. Raises BrokerError."""
        try:
            with open(self._file(name), "rb") as stream:
                stored = stream.read(bounds.RESOURCE_BYTES + _OVERHEAD + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise BrokerError(f"cannot read resource {name}: {error.strerror}") from error
        nonce = stored[len(_MAGIC) :][:_NONCE_BYTES]
        if len(stored) > bounds.RESOURCE_BYTES + _OVERHEAD:
            raise BrokerError(
                f"cannot read resource {name}: it is longer than {bounds.RESOURCE_BYTES} bytes"
            )
        if not stored.startswith(_MAGIC):
            raise BrokerError(f"cannot read resource {name}: it is not a file of this store")
        try:
            sealed = stored[len(_MAGIC) + _NONCE_BYTES :]
            return self._cipher.decrypt(nonce, sealed, str(name).encode())
        except (InvalidTag, ValueError) as error:
            raise BrokerError(
                f"cannot read resource {name}: it was changed, or stored with another key"
            ) from error

    def put(self, name: ResourceName, content: bytes) -> None:
        """Store or replace. Raises BrokerError."""
        if len(content) > bounds.RESOURCE_BYTES:
            raise BrokerError(
                f"cannot store resource {name}: it is longer than {bounds.RESOURCE_BYTES} bytes"
            )
        if not content:
            raise BrokerError(f"cannot store resource {name}: it is empty")
        nonce = os.urandom(_NONCE_BYTES)
        stored = _MAGIC + nonce + self._cipher.encrypt(nonce, content, str(name).encode())
        try:
            for depth in (1, 2):  # os.makedirs gives its mode to the last folder only
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.join(self._path, *name[:depth]), 0o700)
            directory.write(self._file(name), stored)
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
