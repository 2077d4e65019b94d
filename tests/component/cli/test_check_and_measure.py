"""`sealrun check` and `sealrun measure` as programs, on guest images and settings of their own.

That what they print is what a VM really measures is shown by tests/system/test_tpm.py."""

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fixtures import cli, snp_oracle
from fixtures import firmware as firmwares
from sealrun_vmm.measurement import igvm, vmsa

QEMU = """#!/bin/sh
case $1 in
--version) echo "QEMU emulator version {version} (test)" ;;
-accel) echo {accelerators} ;;
-object) echo {objects} ;;
-tpmdev) echo emulator ;;
esac
"""
CMDLINE = "console=ttyS0 quiet panic=-1 random.trust_cpu=on 8250.nr_uarts=1"
Write = Callable[..., None]


def qemu(version: str, objects: str, accelerators: str = "tcg kvm") -> str:
    """A program that says of itself what QEMU would."""
    return QEMU.format(version=version, objects=objects, accelerators=accelerators)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation with a guest image whose files are small."""
    prefix = tmp_path_factory.mktemp("prefix")
    cli.install(prefix, cli.ROOT / "tests/simulators/shim.py")
    image = prefix / "share/sealrun/guest"
    image.mkdir(parents=True)
    kernel, initrd = firmwares.kernel(), b"an initrd"
    (image / "vmlinuz").write_bytes(kernel)
    (image / "initrd").write_bytes(initrd)
    part = {"file": "vmlinuz", "bytes": len(kernel), "version": "6.12.95-1"}
    manifest = {
        "kernel": part,
        "bzimage": part,
        "initrd": {"file": "initrd", "bytes": len(initrd)},
    }
    (image / "manifest.json").write_text(json.dumps(manifest))
    return prefix


@pytest.fixture
def settings(prefix: Path, tmp_path: Path) -> Write:
    """settings(name=value, …) are those of [vm]; files that are there: fw, ch.igvm, qemu."""
    (tmp_path / "fw").write_bytes(firmwares.ovmf(4))
    binary = tmp_path / "qemu"
    binary.write_text(qemu(version="10.2.0", objects="sev-snp-guest tdx-guest"))
    binary.chmod(0o755)

    def write(tee: str = "auto", **vm: object) -> None:
        vm = {"qemu": str(binary), "cloud_hypervisor": "/nowhere/ch", "accelerator": "tcg"} | vm
        lines = [f"{name} = {json.dumps(value)}" for name, value in vm.items()]
        text = "\n".join([f'tee = "{tee}"', "[vm]", *lines]) + "\n"
        (prefix / "share/sealrun/sealrun.toml").write_text(text)

    write()
    return write


@pytest.fixture
def world(prefix: Path, tmp_path: Path) -> cli.World:
    return cli.World(prefix / "bin/sealrun", tmp_path)


def check(world: cli.World) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status and findings by subject."""
    done = world("check", "--format", "json")
    return done.returncode, {finding["subject"]: finding for finding in json.loads(done.stdout)}


def measure(world: cli.World, *arguments: str) -> dict[str, Any]:
    done = world("measure", "--format", "json", *arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


# --- check ---------------------------------------------------------------------------------------


def test_every_finding_says_what_to_do(world: cli.World, settings: Write) -> None:
    settings(memory=1024)
    status, findings = check(world)
    assert status == 0
    assert findings["a container"]["good"]
    assert findings["none: qemu"]["text"] == "starts it with tcg"
    assert findings["scratch disk"]["text"] == "10240 MiB in /var/tmp"
    bad = [finding for finding in findings.values() if not finding["good"]]
    assert bad
    assert all(finding["remedy"] for finding in bad), bad
    assert not any(finding["remedy"] for finding in findings.values() if finding["good"])


def test_the_same_as_lines(world: cli.World) -> None:
    done = world("check")
    lines = done.stdout.splitlines()
    assert lines[0] == "ok  settings: tee auto, driver auto"
    assert lines[-1] == "ok  a container: boots by qemu with tcg, tee none"
    assert all(line.startswith(("ok  ", "no  ")) for line in lines)
    (snp,) = (line for line in lines if line.startswith("no  snp: this machine: "))
    assert "the CPU does not show sev_snp; take an EPYC 7003" in snp


@pytest.mark.parametrize(
    ("tee", "vm", "words"),
    [
        ("auto", {"qemu": "/nowhere/qemu"}, "cannot find /nowhere/qemu"),
        ("auto", {"driver": "cloud-hypervisor"}, "cannot find /nowhere/ch"),
        ("auto", {"scratch_directory": "/nowhere"}, "cannot make a scratch disk of 10240 MiB"),
        ("auto", {"scratch": 1}, "cannot make a scratch disk of 1 MiB"),
        ("snp", {}, "the CPU does not show sev_snp"),
        ("tdx", {}, "the CPU does not show tdx_host_platform"),
        ("tpm", {"swtpm": "/nowhere/swtpm"}, "cannot find /nowhere/swtpm"),
        ("tpm", {"swtpm": "/bin/true"}, "cannot use /bin/true: it does not say that it is swtpm"),
        ("tpm", {"tpm_state": "/proc/version"}, "/proc/version is no directory"),
        ("tpm", {"tpm_state": ""}, "vm.tpm_state is empty"),
        ("tpm", {"firmware": "/nowhere/fw"}, "there is no /nowhere/fw"),
        ("auto", {"memory": 4194304}, "cannot give a VM 4194304 MiB: this host has "),
        ("auto", {"qemu": "/bin/true"}, "cannot use /bin/true: it does not say that it is QEMU"),
        ("auto", {"qemu": "/etc/passwd"}, "cannot use /etc/passwd: it is not executable"),
        ("auto", {"qemu": "/bin/false"}, "cannot use /bin/false: it ended with status 1"),
    ],
)
def test_nothing_boots(
    world: cli.World, settings: Write, tee: str, vm: dict[str, object], words: str
) -> None:
    settings(tee, **({"memory": 1024} | vm))
    status, findings = check(world)
    assert status == 1
    assert not findings["a container"]["good"]
    assert words in findings["a container"]["text"]
    assert findings["a container"]["remedy"]


def test_each_vmm_is_looked_at_whatever_the_machine_has(
    world: cli.World, settings: Write, tmp_path: Path
) -> None:
    section = (0, 4 * 4096, (1 << 32) - 4 * 4096, 4 * 4096, 0, 1)
    (tmp_path / "fw").write_bytes(firmwares.ovmf(4, tdx=[section]))
    settings(firmware=str(tmp_path / "fw"), accelerator="auto", quote_service="")
    _, findings = check(world)
    for tee in ("snp", "tdx"):  # all is there but a KVM
        assert "cannot use KVM" in findings[f"{tee}: qemu"]["text"]
    assert "switched off since v53" in findings["tdx: cloud-hypervisor"]["text"]
    old = qemu(version="7.2.22", objects="sev-guest")
    (tmp_path / "qemu").write_text(old)
    _, findings = check(world)
    assert "by QEMU 7.2: it is too old" in findings["snp: qemu"]["text"]
    assert "install QEMU 9.1 or newer" in findings["snp: qemu"]["remedy"]
    assert "install QEMU 10.1 or newer" in findings["tdx: qemu"]["remedy"]
    without = qemu(version="11.0.1", objects="sev-guest")
    (tmp_path / "qemu").write_text(without)
    _, findings = check(world)
    assert "was built without sev-snp-guest" in findings["snp: qemu"]["text"]


def test_settings_that_cannot_be_read(world: cli.World, prefix: Path) -> None:
    (prefix / "share/sealrun/sealrun.toml").write_text("[vm]\ncpu = 2\n")
    status, findings = check(world)
    assert status == 1
    assert "unknown setting vm.cpu; did you mean vm.cpus?" in findings["settings"]["text"]


# --- measure -------------------------------------------------------------------------------------


def oracle(world: cli.World, prefix: Path, cpus: int, firmware: str = "fw") -> str:
    """What sev-snp-measure says of the same files."""
    image = prefix / "share/sealrun/guest"
    kernel, initrd = image / "vmlinuz", image / "initrd"
    return snp_oracle.digest(world.tmp / firmware, kernel, initrd, CMDLINE, cpus).hex()


def test_snp_by_qemu(world: cli.World, settings: Write, prefix: Path) -> None:
    settings(firmware=str(world.tmp / "fw"), accelerator="auto")
    document = measure(world, "--tee", "snp", "--driver", "qemu", "--cpus", "3")
    values = document["values"]
    assert values["snp_launch_measurement"]["accepted"] == [oracle(world, prefix, 3)]
    assert values["snp_smt_allowed"]["accepted"] == [True]
    assert document["inputs"]["command line"] == CMDLINE
    assert (document["tee"], document["driver"], document["accelerator"]) == ("snp", "qemu", "kvm")


def test_snp_by_cloud_hypervisor(
    world: cli.World, settings: Write, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmwares, "HASH_TABLE", igvm.HASHES_ADDRESS)
    sections = ((0x1000, 0x1000, 2), (0x2000, 0x1000, 3), (0x10000, 0x1000, 0x10))
    raw = firmwares.ovmf(4, sev=sections)
    (world.tmp / "raw").write_bytes(raw)
    states = [vmsa.at_reset(vmsa.RESET_ADDRESS, 0x800F12)]
    (world.tmp / "ch.igvm").write_bytes(firmwares.igvm(raw, states, sections))
    settings(firmware=str(world.tmp / "ch.igvm"), accelerator="auto")
    values = measure(world, "--tee", "snp", "--driver", "cloud-hypervisor")["values"]
    assert values["snp_launch_measurement"]["accepted"] == [oracle(world, prefix, 1, "raw")]
    refused = world("measure", "--tee", "snp", "--driver", "cloud-hypervisor", "--cpus", "2")
    assert refused.returncode == 1
    assert "the IGVM file is for 1 CPUs, and the VM has 2" in refused.stderr


def test_tdx(world: cli.World, settings: Write, tmp_path: Path) -> None:
    section = (0, 4 * 4096, (1 << 32) - 4 * 4096, 4 * 4096, 0, 1)
    (tmp_path / "fw").write_bytes(firmwares.ovmf(4, tdx=[section]))
    settings(firmware=str(tmp_path / "fw"), accelerator="auto")
    document = measure(world, "--tee", "tdx")
    sizes = {name: len(value["accepted"]) for name, value in document["values"].items()}
    assert sizes == {"mr_td": 1, "rtmr_1": 4, "rtmr_2": 1, "tdvfkernel": 2, "tdvfkernelparams": 1}
    for value in document["values"].values():
        assert all(len(bytes.fromhex(accepted)) == 48 for accepted in value["accepted"])
    assert any(line.startswith("RTMR 0") for line in document["left_out"])


def test_tpm(world: cli.World, settings: Write, tmp_path: Path) -> None:
    settings(firmware=str(tmp_path / "fw"))
    text = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    (tmp_path / "init-data.toml").write_bytes(text)
    values = measure(world, "--tee", "tpm")["values"]
    assert set(values) == {f"tpm_pcr{number:02}" for number in (2, 3, 4, 5, 6, 7, 9)}
    bound = measure(world, "--tee", "tpm", "--init-data", str(tmp_path / "init-data.toml"))
    digest = hashlib.sha256(text).digest()
    expected = hashlib.sha256(bytes(32) + digest).hexdigest()
    assert bound["values"].pop("tpm_pcr08")["accepted"] == [expected]
    assert bound["values"] == values
    emulated = measure(world, "--tee", "tpm", "--accelerator", "kvm")["values"]
    assert {name for name in values if emulated[name] != values[name]} == {"tpm_pcr09"}


def test_the_attestation_key_is_the_hosts(
    world: cli.World, settings: Write, tmp_path: Path
) -> None:
    """Made once, and then the same; another host has another."""
    settings(firmware=str(tmp_path / "fw"), tpm_state=str(tmp_path / "tpm"))
    found = [measure(world, "--tee", "tpm", "--attestation-key")["values"] for _ in range(2)]
    keys = [values["trusted_aks"]["accepted"] for values in found]
    assert keys[0] == keys[1]
    settings(firmware=str(tmp_path / "fw"), tpm_state=str(tmp_path / "other"))
    other = measure(world, "--tee", "tpm", "--attestation-key")["values"]
    assert other["trusted_aks"]["accepted"] != keys[0]
    loaded = serialization.load_der_public_key(base64.b64decode(keys[0][0]))
    assert isinstance(loaded, rsa.RSAPublicKey)
    refused = world("measure", "--tee", "snp", "--driver", "qemu", "--attestation-key")
    assert "--attestation-key is for --tee tpm" in refused.stderr


def test_host_data_is_shown_where_there_is_init_data(
    world: cli.World, settings: Write, tmp_path: Path
) -> None:
    settings(firmware=str(tmp_path / "fw"), accelerator="auto")
    text = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
    (tmp_path / "init-data.toml").write_bytes(text)
    options = ("--tee", "snp", "--driver", "qemu", "--init-data", str(tmp_path / "init-data.toml"))
    assert measure(world, *options)["inputs"]["HOST_DATA"] == hashlib.sha384(text).hexdigest()[:64]


def test_the_forms_say_the_same(world: cli.World, settings: Write, tmp_path: Path) -> None:
    settings(firmware=str(tmp_path / "fw"))
    options = ("--tee", "tpm", "--format")
    values = measure(world, "--tee", "tpm")["values"]
    broker = json.loads(world("measure", *options, "broker").stdout)
    assert broker == {name: value["accepted"] for name, value in values.items()}
    trustee = json.loads(world("measure", *options, "trustee").stdout)
    assert (trustee["version"], trustee["type"]) == ("0.1.0", "sample")
    assert json.loads(base64.b64decode(trustee["payload"])) == broker
    text = world("measure", *options, "text").stdout
    assert text.startswith("tpm by qemu with tcg\n")
    assert all(value["accepted"][0] in text for value in values.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "there is nothing to measure: the VM has no TEE"),
        (("--tee", "sgx"), "invalid tee sgx: it is one of none, snp, tdx, tpm"),
        (("--format", "xml"), "invalid format xml"),
        (("--cpus", "many"), "sealrun: --cpus: expected `int`"),
        (("--memory", "0"), "sealrun: --memory: expected `int` >= 128"),
        (("--init-data", "/nowhere"), "cannot read /nowhere"),
        (("--tee", "tdx", "--driver", "cloud-hypervisor"), "switched off since v53"),
        (("--tee", "snp", "--driver", "qemu"), "AmdSev"),
        (("operand",), "unexpected operand"),
    ],
)
def test_what_cannot_be_measured(
    world: cli.World, settings: Write, arguments: tuple[str, ...], words: str
) -> None:
    settings()
    done = world("measure", *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stdout == ""
