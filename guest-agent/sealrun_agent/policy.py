"""What the agent obeys: the tenant's init-data, and whether a TEE keeps the host out.

The operator's wishes arrive with the requests; this is where it is decided which of them count.
"""

from typing import NamedTuple

from sealrun_protocol import limits
from sealrun_protocol.errors import ERRORS, Phase
from sealrun_protocol.init_data import ABSENT, InitData

from sealrun_agent.container.workload import Tenant
from sealrun_agent.errors import AgentError

NO_TEE = "none"


class Policy(NamedTuple):
    """Holds for the whole life of the sandbox. tee: as in Hello."""

    init_data: InitData = ABSENT
    tee: str = NO_TEE

    @property
    def protected(self) -> bool:
        """Whether the host must not learn anything of the tenant's."""
        return self.tee != NO_TEE

    @property
    def tenant(self) -> Tenant | None:
        """What may run, and what the host may share; None where there is neither a tenant to ask nor a
        TEE to protect one."""
        if not self.init_data.text and not self.protected:
            return None
        container = self.init_data.container
        readable = container.allow_output or container.insecure_any_process
        return Tenant(container, self.init_data.host, output=readable or not self.protected)

    @property
    def allowed_images(self) -> tuple[str, ...] | None:
        """Patterns; None = every image. With a TEE no image runs that the tenant did not name, by a pattern
        or by a policy: it would be given whatever the VM's evidence is worth."""
        image = self.init_data.image
        if image.allowed is not None or not self.protected:
            return image.allowed
        return None if image.image_security_policy or image.image_security_policy_uri else ()

    def insecure_registries(self, wished: tuple[str, ...]) -> tuple[str, ...]:
        """The registries to speak plain http to. `wished` by the operator counts only where there is
        no tenant to ask and nothing to protect."""
        if self.init_data.text or self.protected:
            return self.init_data.image.insecure_registries
        return wished

    def words(self, error: AgentError) -> str:
        """What the host is told of an error besides its code, in one line."""
        return ERRORS[error.code].summary if self.protected else one_line(str(error))

    def progress_words(self, phase: Phase, text: str) -> str:
        """What the host is told while something goes on, in one line."""
        return phase.value if self.protected else one_line(text)


def one_line(text: str) -> str:
    """Without control characters, at most limits.ERROR_TEXT_BYTES bytes of UTF-8."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    encoded = visible.encode("utf-8", "replace")
    if len(encoded) <= limits.ERROR_TEXT_BYTES:
        return encoded.decode()
    cut = encoded[: limits.ERROR_TEXT_BYTES - len("…".encode())]
    return cut.decode("utf-8", "ignore") + "…"
