"""Nothing falls back to sample evidence by itself."""

from pathlib import Path

import pytest
from sealrun_agent.attestation.attester import detect
from sealrun_agent.attestation.choice import choose
from sealrun_agent.errors import AttestError
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import ABSENT, Attestation

ALLOWING = ABSENT._replace(attestation=Attestation(insecure_sample_evidence=True))
INTERFACES = ["dev/sev-guest", "dev/tdx_guest", "sys/kernel/config/tsm/report"]


def test_no_tee_and_no_permission(tmp_path: Path) -> None:
    with pytest.raises(AttestError) as caught:
        choose(ABSENT, str(tmp_path))
    assert caught.value.code == ErrorCode.SAMPLE_NOT_ALLOWED


def test_no_tee_and_permission(tmp_path: Path) -> None:
    assert detect(str(tmp_path)) is None
    attester = choose(ALLOWING, str(tmp_path))
    assert attester.tee == "sample"
    assert attester.evidence(b"\xfb" * 48) == {"svn": "1", "report_data": "+/v7" * 16}


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_tee_that_is_there_is_never_passed_over(tmp_path: Path, interface: str) -> None:
    (tmp_path / interface).mkdir(parents=True)
    for init_data in (ABSENT, ALLOWING):
        with pytest.raises(AttestError) as caught:
            choose(init_data, str(tmp_path))
        assert caught.value.code == ErrorCode.TEE_UNAVAILABLE
        assert interface in str(caught.value)
