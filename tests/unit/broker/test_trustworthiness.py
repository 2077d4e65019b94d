"""Trustee's default policy, rule by rule: what is affirmed, and what keeps a VM from it."""

import copy
from typing import Any

import pytest
from sealrun_broker.reference_values import References
from sealrun_broker.trustworthiness import appraise

SNP: dict[str, Any] = {
    "measurement": "aa",
    "reported_tcb_bootloader": 3,
    "reported_tcb_microcode": 209,
    "reported_tcb_snp": 20,
    "reported_tcb_tee": 0,
    "policy_debug_allowed": False,
    "policy_migrate_ma": False,
    "platform_smt_enabled": True,
    "platform_tsme_enabled": False,
    "policy_abi_major": 0,
    "policy_abi_minor": 31,
    "policy_single_socket": False,
    "policy_smt_allowed": True,
}
SNP_GOOD: References = {
    "snp_launch_measurement": ["bb", "aa"],
    "snp_bootloader": [3],
    "snp_microcode": [208, 209],
    "snp_snp_svn": [20],
    "snp_tee_svn": 0,
}
SNP_KNOWN: References = {
    "snp_smt_enabled": True,
    "snp_tsme_enabled": False,
    "snp_guest_abi_major": 0,
    "snp_guest_abi_minor": [31],
    "snp_single_socket": False,
    "snp_smt_allowed": True,
}
TDX: dict[str, Any] = {
    "quote": {
        "header": {"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"},
        "body": {"rtmr_1": "01", "rtmr_2": "02", "mr_td": "0d", "xfam": "e7"},
    },
    "td_attributes": {"debug": False},
    "tcb_status": "UpToDate",
    "collateral_expiration_status": "0",
    "uefi_event_logs": [
        {
            "type_name": "EV_EFI_BOOT_SERVICES_APPLICATION",
            "details": {"device_paths": ["File(kernel)"]},
            "digests": [{"digest": "0e"}],
        },
        {
            "type_name": "EV_EVENT_TAG",
            "details": {"string": "LOADED_IMAGE::LoadOptions"},
            "digests": [{"digest": "0c"}],
        },
    ],
}
TDX_GOOD: References = {"rtmr_1": ["01"], "rtmr_2": ["02"], "mr_td": ["0d"], "xfam": ["e7"]}
TPM: dict[str, Any] = {"ak_public": "key"} | {f"pcr{i:02}": f"{i:02}" for i in range(24)}
TPM_GOOD: References = {"trusted_aks": ["key"], "tpm_pcr04": ["04"], "tpm_pcr09": ["x", "09"]}
SAMPLE: dict[str, Any] = {
    "svn": "1",
    "launch_digest": "abcde",
    "platform_version": {"major": 1, "minor": 4},
    "debug": False,
}
SAMPLE_GOOD: References = {
    "svn": ["1"],
    "launch_digest": ["abcde"],
    "major_version": 1,
    "minimum_minor_version": 1,
}


def vector(tee: str, claims: dict[str, Any], references: References) -> tuple[int, int, int, str]:
    trust = appraise(tee, claims, references)
    assert set(trust.vector) == {
        "instance-identity", "configuration", "executables", "file-system",
        "hardware", "runtime-opaque", "storage-opaque", "sourced-data",
    }  # fmt: skip
    return (
        trust.vector["executables"],
        trust.vector["hardware"],
        trust.vector["configuration"],
        trust.status,
    )


def changed(claims: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """With one claim, by its dotted name, exchanged."""
    copied = copy.deepcopy(claims)
    place = copied
    *path, last = name.split(".")
    for part in path:
        place = place[part]
    place[last] = value
    return copied


def test_all_is_well() -> None:
    assert vector("snp", SNP, SNP_GOOD) == (3, 2, 3, "affirming")
    assert vector("snp", SNP, {**SNP_GOOD, **SNP_KNOWN}) == (3, 2, 2, "affirming")
    assert vector("tdx", TDX, TDX_GOOD) == (4, 2, 2, "affirming")
    kernel = {"tdvfkernel": ["0e"], "tdvfkernelparams": ["0c"]}
    assert vector("tdx", TDX, {**TDX_GOOD, **kernel}) == (3, 2, 2, "affirming")
    assert vector("tpm", TPM, TPM_GOOD) == (3, 2, 0, "affirming")
    assert vector("sample", SAMPLE, SAMPLE_GOOD) == (3, 2, 2, "affirming")
    for tee, claims, references in (
        ("snp", SNP, SNP_GOOD),
        ("tdx", TDX, TDX_GOOD),
        ("tpm", TPM, TPM_GOOD),
        ("sample", SAMPLE, SAMPLE_GOOD),
    ):
        assert appraise(tee, claims, references).reasons == ()


def test_without_reference_values_nothing_is_affirmed() -> None:
    assert vector("snp", SNP, {}) == (33, 97, 3, "contraindicated")
    assert vector("tdx", TDX, {}) == (33, 97, 36, "contraindicated")
    assert vector("tpm", TPM, {}) == (33, 2, 0, "warning")
    assert vector("sample", SAMPLE, {}) == (33, 97, 2, "contraindicated")
    assert vector("cca", {}, SNP_GOOD) == (33, 97, 36, "contraindicated")


@pytest.mark.parametrize(
    ("tee", "name", "value", "reason"),
    [
        ("snp", "measurement", "cc", "launch measurement is not among"),
        ("snp", "reported_tcb_microcode", 1, "TCB's microcode is not among"),
        ("snp", "reported_tcb_tee", False, "TCB's tee is not among"),
        ("snp", "policy_debug_allowed", True, "the host may debug the VM"),
        ("snp", "policy_migrate_ma", True, "the host may migrate the VM"),
        ("tdx", "quote.body.rtmr_1", "99", "RTMR_1 is not among"),
        ("tdx", "quote.body.rtmr_2", "99", "RTMR_2 is not among"),
        ("tdx", "quote.body.mr_td", "99", "MRTD is not among"),
        ("tdx", "quote.body.xfam", "99", "XFAM is not among"),
        ("tdx", "quote.header.vendor_id", "00", "not of Intel's quoting enclave"),
        ("tdx", "tcb_status", "OutOfDate", "the platform's TCB is OutOfDate"),
        ("tdx", "td_attributes.debug", True, "the host may debug the VM"),
        ("tpm", "ak_public", "other", "attestation key is not among"),
        ("tpm", "pcr04", "99", "PCR 4 is not among"),
        ("tpm", "pcr09", "99", "PCR 9 is not among"),
        ("sample", "launch_digest", "x", "launch digest is not among"),
        ("sample", "svn", 1, "security version is not among"),
        ("sample", "platform_version.minor", 0, "not known to be new enough"),
    ],
)
def test_what_keeps_a_vm_from_it(tee: str, name: str, value: Any, reason: str) -> None:
    claims, references = {
        "snp": (SNP, SNP_GOOD),
        "tdx": (TDX, TDX_GOOD),
        "tpm": (TPM, TPM_GOOD),
        "sample": (SAMPLE, SAMPLE_GOOD),
    }[tee]
    trust = appraise(tee, changed(claims, name, value), references)
    assert trust.status in ("warning", "contraindicated")
    assert [text for text in trust.reasons if reason in text], trust.reasons


@pytest.mark.parametrize("missing", ["tcb_status", "collateral_expiration_status"])
def test_tdx_without_collateral(missing: str) -> None:
    claims = {name: value for name, value in TDX.items() if name != missing}
    assert vector("tdx", claims, TDX_GOOD) == (4, 97, 2, "contraindicated")


@pytest.mark.parametrize("missing", ["trusted_aks", "tpm_pcr04"])
def test_tpm_needs_a_key_and_a_pcr(missing: str) -> None:
    references = {"trusted_aks": ["key"], "tpm_pcr04": ["04"]}
    assert vector("tpm", TPM, references)[3] == "affirming"
    del references[missing]
    assert vector("tpm", TPM, references)[3] == "warning"


def test_a_kernel_that_only_has_the_name() -> None:
    kernel: References = {**TDX_GOOD, "tdvfkernel": ["99"], "tdvfkernelparams": ["0c"]}
    assert vector("tdx", TDX, kernel)[0] == 4
    assert vector("tdx", {k: v for k, v in TDX.items() if k != "uefi_event_logs"}, kernel)[0] == 4
