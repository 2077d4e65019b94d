"""HOME of a user whom the container's /etc/passwd does not know: `/`, as with runc, and with crun under Podman.

crun itself gives a user the directory that /etc/passwd names, and an unknown one nothing.
"""

from typing import Final

import msgspec

from sealrun_agent import accounts
from sealrun_agent.container.runtime_spec import Process
from sealrun_agent.container.spec import Accepted

_NAME: Final = "HOME="
_UNKNOWN: Final = "HOME=/"
_HIDING: Final = ("/etc", "/etc/passwd")


def with_home(process: Process, root: str) -> Process:
    """With a HOME where crun would give it none. root: of the container's files."""
    environment = process.env or ()
    if any(variable.startswith(_NAME) for variable in environment):
        return process
    if any(user.uid == process.user.uid for user in accounts.users(root)):
        return process
    return msgspec.structs.replace(process, env=(*environment, _UNKNOWN))


def settle(accepted: Accepted, root: str) -> Accepted:
    """The same for a container's first program. root: before anything is mounted on it, so that a mount which
    brings another /etc/passwd (Podman's, with a line for the user) is left to crun."""
    spec = accepted.spec
    if any(f"/{mount.destination.strip('/')}" in _HIDING for mount in spec.mounts or ()):
        return accepted
    process = with_home(spec.process, root)
    return accepted._replace(spec=msgspec.structs.replace(spec, process=process))
