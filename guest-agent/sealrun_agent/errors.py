"""The agent's errors: one class per phase, each carrying a code of the protocol's table.

    AgentError
    ├── BootError      the VM could not be set up
    ├── AttestError    init-data, evidence, key broker
    ├── PullError      registry, space
    ├── VerifyError    digests, media types, policy on images
    ├── DecryptError   keys, authentication codes
    ├── StartError     accepted spec, crun, the program
    └── RunError       requests to a container that was created
    DialFailed         no connection; whoever dialled says in which phase that is

Text is one line, lower case, no full stop; it names the thing ("layer sha256:…: …").
"""

from typing import ClassVar

from sealrun_protocol.errors import ErrorCode, Phase


class AgentError(Exception):
    """A failure that the host is told about."""

    phase: ClassVar[Phase] = Phase.RUN

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class BootError(AgentError):
    """The VM could not be set up."""

    phase = Phase.BOOT


class AttestError(AgentError):
    """Init-data, evidence or key broker."""

    phase = Phase.ATTEST


class PullError(AgentError):
    """The registry, or no space for what it sends."""

    phase = Phase.PULL


class VerifyError(AgentError):
    """The image is not what it should be."""

    phase = Phase.VERIFY


class DecryptError(AgentError):
    """An encrypted layer could not be opened."""

    phase = Phase.DECRYPT


class StartError(AgentError):
    """The container could not be made or started."""

    phase = Phase.START


class RunError(AgentError):
    """A request to a container failed."""

    phase = Phase.RUN


class DialFailed(Exception):
    """No connection to an endpoint. `refused`: the host's relay does not open it for the guest."""

    def __init__(self, text: str, *, refused: bool) -> None:
        super().__init__(text)
        self.refused = refused
