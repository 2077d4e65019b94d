"""Which TEE a sandbox gets.

Rules: the one that the operator names, which must be there; for `auto` the first of SNP and TDX that
this machine has. A tenant's init-data may name those that it accepts: then it is one of these or an
error. A TPM is never taken by `auto` alone: it protects nothing from the host. Nothing falls back.
"""

from collections.abc import Collection
from importlib import import_module
from typing import Final, Protocol

from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import Tee
from sealrun_vmm.tee.launch import Launch, Options
from sealrun_vmm.tee.platform import Platform

AUTOMATIC: Final = (Tee.SNP, Tee.TDX)


class TeeModule(Protocol):
    """What the modules of this folder have in common; see launch.py."""

    DRIVERS: tuple[DriverName, ...]

    def require(self, platform: Platform, options: Options, /) -> None:
        """Raise HostUnfit where this machine does not have it."""

    def launch(self, driver: DriverName, options: Options, /) -> Launch:
        """Raise HostUnfit, SpecRefused."""


def load(tee: Tee) -> TeeModule:
    """The module of a TEE, imported only now."""
    module: TeeModule = import_module(f"sealrun_vmm.tee.{tee.value}")
    return module


def choose(asked: str, accepted: Collection[str], platform: Platform, options: Options) -> Tee:
    """asked: `auto` or a Tee's name. accepted: names that the tenant accepts; empty: any, or none.

    Raises HostUnfit, SpecRefused."""
    if asked != "auto":
        tee = Tee(asked)
        if accepted and tee.value not in accepted:
            raise SpecRefused(
                f"the init-data accepts {' or '.join(accepted)} only, and this host is set to {tee}",
                remedy="set tee to auto in sealrun.toml, or run it on another host",
            )
        load(tee).require(platform, options)
        return tee
    reasons = []
    for tee in AUTOMATIC if not accepted else [tee for tee in Tee if tee.value in accepted]:
        try:
            load(tee).require(platform, options)
        except HostUnfit as error:
            if platform.kvm and platform.is_on(tee):
                raise  # the machine has it, and this user may not: no reason to do without
            reasons.append(str(error))
        else:
            return tee
    if not accepted:
        return Tee.NONE
    raise HostUnfit(
        f"the init-data accepts {' or '.join(accepted)} only: {'; '.join(reasons)}",
        remedy="run it on a host that has it",
    )
