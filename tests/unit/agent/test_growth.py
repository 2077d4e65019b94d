"""CPUs that appear while the VM runs."""

from pathlib import Path

import pytest
from sealrun_agent import growth
from sealrun_agent.errors import RunError


def tree(place: Path, online: dict[str, str], ranges: str) -> str:
    for name, state in online.items():
        (place / name).mkdir()
        if state:
            (place / name / "online").write_text(f"{state}\n")
    (place / "online").write_text(f"{ranges}\n")
    return str(place)


def test_what_is_offline_is_brought_online(tmp_path: Path) -> None:
    cpus = {"cpu0": "", "cpu1": "1", "cpu2": "0", "cpu13": "0", "cpufreq": "0", "cpuidle": ""}
    assert growth.bring_online(tree(tmp_path, cpus, "0-1")) == 2
    states = {name: (tmp_path / name / "online").read_text() for name in cpus if cpus[name]}
    assert states == {"cpu1": "1\n", "cpu2": "1", "cpu13": "1", "cpufreq": "0\n"}


def test_a_cpu_that_does_not_come_online(tmp_path: Path) -> None:
    (tmp_path / "cpu1/online").mkdir(parents=True)
    with pytest.raises(RunError, match="cannot use what was added: "):
        growth.bring_online(str(tmp_path))


@pytest.mark.parametrize(("ranges", "number"), [("0", 1), ("0-3", 4), ("0-2,5", 4), ("1,3,8-9", 4)])
def test_counting(ranges: str, number: int) -> None:
    assert growth.count(ranges) == number
