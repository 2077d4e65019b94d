"""From claims and reference values to a trustworthiness vector (AR4SI): Trustee's default policy.

The names of the values and what follows from them are those of kbs-protocol, 5.2, so that a tenant
can move between the two brokers. Differences, both towards no:

- `tpm`: any `tpm_pcrNN` may have reference values, not only PCR 11; all that have some must agree,
  and at least one must have some.
- nothing is affirmed where a value that a rule asks for is not set.

Each rule that does not hold is a reason, one line for a person. Reasons name what was compared,
never what would have been accepted.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from sealrun_broker.reference_values import References, Scalar, listed

Claims = Mapping[str, Any]

AFFIRMING: Final = "affirming"
_UNRECOGNISED: Final = {"executables": 33, "hardware": 97, "configuration": 36}
_OTHERS: Final = (
    "instance-identity",
    "file-system",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
_INTEL_VENDOR: Final = "939a7233f79c4ca9940a0db3957f0607"
_PCRS: Final = tuple(f"pcr{number:02}" for number in range(24))


class Trust(NamedTuple):
    """vector: AR4SI's eight claims. status: the worst tier in it. reasons: why it is not better."""

    vector: dict[str, int]
    status: str
    reasons: tuple[str, ...]


class _Judge:
    def __init__(self, references: References) -> None:
        self._references = references
        self.vector = dict(_UNRECOGNISED)
        self.reasons: list[str] = []

    def among(self, value: object, name: str, what: str) -> bool:
        """Whether `value` is a reference value called `name`."""
        good = self.good(name)
        if _known(value, good):
            return True
        self.reasons.append(
            f"{what} is not among the reference values {name}"
            if good
            else f"there are no reference values {name} for {what}"
        )
        return False

    def good(self, name: str) -> list[Scalar]:
        """The reference values of this name; empty where there are none."""
        return listed(self._references, name)

    def holds(self, true: bool, reason: str) -> bool:
        """`true`, or the reason why not."""
        if not true:
            self.reasons.append(reason)
        return true


def _known(value: object, good: list[Scalar]) -> bool:
    """Whether `value` is one of `good`, true and 1 told apart."""
    return any(type(known) is type(value) and known == value for known in good)


def appraise(tee: str, claims: Claims, references: References) -> Trust:
    """The vector of a verifier's claims. A kind of evidence without rules is not recognised."""
    judge = _Judge(references)
    rules = _RULES.get(tee)
    if rules is not None:
        rules(judge, claims)
    vector = judge.vector | dict.fromkeys(_OTHERS, 0)
    return Trust(vector, _status(vector.values()), tuple(judge.reasons))


def _status(values: Any) -> str:
    worst = max(values)
    if worst >= 96:
        return "contraindicated"
    if worst >= 32:
        return "warning"
    return AFFIRMING if worst >= 2 else "none"


def _snp(judge: _Judge, claims: Claims) -> None:
    if judge.among(claims["measurement"], "snp_launch_measurement", "the launch measurement"):
        judge.vector["executables"] = 3
    parts = ("bootloader", "microcode", "snp", "tee")
    names = ("snp_bootloader", "snp_microcode", "snp_snp_svn", "snp_tee_svn")
    known = [
        judge.among(claims[f"reported_tcb_{part}"], name, f"the TCB's {part}")
        for part, name in zip(parts, names, strict=True)
    ]
    if all(known):
        judge.vector["hardware"] = 2
    debug = judge.holds(not claims["policy_debug_allowed"], "the host may debug the VM")
    if judge.holds(not claims["policy_migrate_ma"], "the host may migrate the VM") and debug:
        judge.vector["configuration"] = 2 if _snp_configuration(judge, claims) else 3


def _snp_configuration(judge: _Judge, claims: Claims) -> bool:
    """Whether every setting is a known one; that it is not is no reason against the VM."""
    asked = (
        ("platform_smt_enabled", "snp_smt_enabled"),
        ("platform_tsme_enabled", "snp_tsme_enabled"),
        ("policy_abi_major", "snp_guest_abi_major"),
        ("policy_abi_minor", "snp_guest_abi_minor"),
        ("policy_single_socket", "snp_single_socket"),
        ("policy_smt_allowed", "snp_smt_allowed"),
    )
    return all(_known(claims[claim], judge.good(name)) for claim, name in asked)


def _tdx(judge: _Judge, claims: Claims) -> None:
    header, body = claims["quote"]["header"], claims["quote"]["body"]
    booted = [judge.among(body[name], name, name.upper()) for name in ("rtmr_1", "rtmr_2")]
    if all(booted):
        judge.vector["executables"] = 3 if _tdx_kernel(judge, claims) else 4
    genuine = header["tee_type"] == "81000000" and header["vendor_id"] == _INTEL_VENDOR
    hardware = [
        judge.holds(genuine, "the quote is not of Intel's quoting enclave"),
        judge.among(body["mr_td"], "mr_td", "MRTD"),
        judge.holds(
            claims.get("tcb_status") == "UpToDate",
            f"the platform's TCB is {claims.get('tcb_status', 'not known')}",
        ),
        claims.get("collateral_expiration_status") == "0",
    ]
    if all(hardware):
        judge.vector["hardware"] = 2
    debug = judge.holds(not claims["td_attributes"]["debug"], "the host may debug the VM")
    if judge.among(body["xfam"], "xfam", "XFAM") and debug:
        judge.vector["configuration"] = 2


def _tdx_kernel(judge: _Judge, claims: Claims) -> bool:
    """Whether the event log names a known kernel and command line."""
    events = claims.get("uefi_event_logs", ())

    def measured(kind: str, label: Callable[[Claims], bool], name: str) -> bool:
        digests = {
            digest["digest"]
            for event in events
            if event["type_name"] == kind and label(event["details"])
            for digest in event["digests"]
        }
        return not digests.isdisjoint(judge.good(name))

    return measured(
        "EV_EFI_BOOT_SERVICES_APPLICATION",
        lambda details: "File(kernel)" in details.get("device_paths", ()),
        "tdvfkernel",
    ) and measured(
        "EV_EVENT_TAG",
        lambda details: details.get("string") == "LOADED_IMAGE::LoadOptions",
        "tdvfkernelparams",
    )


def _tpm(judge: _Judge, claims: Claims) -> None:
    judge.vector["hardware"] = 2
    judge.vector["configuration"] = 0
    chosen = [pcr for pcr in _PCRS if judge.good(f"tpm_{pcr}")]
    known = [
        judge.holds(bool(chosen), "there are no reference values tpm_pcrNN for any PCR"),
        judge.among(claims["ak_public"], "trusted_aks", "the attestation key"),
        *(judge.among(claims[pcr], f"tpm_{pcr}", f"PCR {int(pcr[3:])}") for pcr in chosen),
    ]
    if all(known):
        judge.vector["executables"] = 3


def _sample(judge: _Judge, claims: Claims) -> None:
    if judge.among(claims["launch_digest"], "launch_digest", "the launch digest"):
        judge.vector["executables"] = 3
    version = claims["platform_version"]
    minor = judge.good("minimum_minor_version")
    hardware = [
        judge.among(claims["svn"], "svn", "the security version"),
        judge.among(version["major"], "major_version", "the platform's version"),
        judge.holds(
            any(isinstance(known, int) and version["minor"] >= known for known in minor),
            "the platform's minor version is not known to be new enough",
        ),
    ]
    if all(hardware):
        judge.vector["hardware"] = 2
    if not claims["debug"]:
        judge.vector["configuration"] = 2


_RULES: Final[Mapping[str, Callable[[_Judge, Claims], None]]] = {
    "snp": _snp,
    "tdx": _tdx,
    "tpm": _tpm,
    "sample": _sample,
}
