"""The numbers of docs/measurement.md."""

import hashlib
import re
from pathlib import Path

from fixtures import firmware as firmwares
from sealrun_vmm.measurement import kernel_hashes, pcr, snp
from sealrun_vmm.measurement.launch_digest import LaunchDigest, PageType
from sealrun_vmm.measurement.ovmf import Ovmf
from sealrun_vmm.spec import VmSpec

DOCUMENT = Path(__file__).parents[3] / "docs/measurement.md"
NUMBER = re.compile(r"^    ([a-z0-9-]+) +([0-9a-f]{64,96})$", re.M)


def test_every_number_is_right(measured: VmSpec) -> None:
    hashes = kernel_hashes.hash_all(b"kernel", b"initrd", "quiet")
    one_page = LaunchDigest()
    one_page.add(PageType.NORMAL, 0xFFFFF000, bytes(4096))
    image = Ovmf(firmwares.ovmf(16))
    registers = pcr.values(measured, pcr.events(measured))
    expected = {
        "kernel": hashes.kernel,
        "initrd": hashes.initrd,
        "cmdline": hashes.cmdline,
        "table": hashlib.sha256(hashes.table()).digest(),
        "one-page": one_page.value,
        "snp-1": snp.digest(image, hashes, 1, "EPYC-v4"),
        "snp-2": snp.digest(image, hashes, 2, "EPYC-v4"),
        "pcr-2": registers[2],
        "pcr-7": registers[7],
        "pcr-8": pcr.with_init_data(hashlib.sha256(b"").digest()),
    }
    written = dict(NUMBER.findall(DOCUMENT.read_text()))
    assert written == {name: value.hex() for name, value in expected.items()}
