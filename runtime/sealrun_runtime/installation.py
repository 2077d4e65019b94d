"""Where this program's own files lie: an installation below a PREFIX, or a checkout."""

import os

_INSTALLED = "/lib/sealrun"


def library() -> str:
    """The directory that holds the source roots `runtime`, `vmm`, `guest-agent`."""
    package = os.path.dirname(os.path.realpath(__file__))
    return os.path.dirname(os.path.dirname(package))


def _prefix() -> str | None:
    root = library()
    return root.removesuffix(_INSTALLED) or "/" if root.endswith(_INSTALLED) else None


def shim_launcher() -> str:
    """The program that `create` executes."""
    return os.path.join(library(), "runtime/bin/sealrun-shim")


def broker_launcher() -> str:
    """The key broker's program, which also appraises evidence."""
    return os.path.join(library(), "key-broker/bin/sealrun-broker")


def shipped_settings() -> str:
    """The sealrun.toml that came with this program: the lowest layer of the configuration."""
    prefix = _prefix()
    if prefix is None:
        return os.path.join(library(), "config/sealrun.toml")
    return os.path.join(prefix, "share/sealrun/sealrun.toml")


def guest_image() -> str:
    """The directory of the guest image that came with this program."""
    prefix = _prefix()
    if prefix is None:
        return os.path.join(library(), "build/guest")
    return os.path.join(prefix, "share/sealrun/guest")
