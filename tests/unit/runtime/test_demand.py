"""What limits let a container use."""

import msgspec
import pytest
from sealrun_runtime.demand import Demand
from sealrun_runtime.oci_config import Resources


def demand(text: str, before: Demand | None = None) -> Demand:
    resources = msgspec.json.decode(text, type=Resources) if text else None
    return (before or Demand()).changed(resources)


@pytest.mark.parametrize(
    ("text", "memory_mib", "cpus"),
    [
        ("", 0, 0),
        ("{}", 0, 0),
        ('{"memory": null, "cpu": null}', 0, 0),
        ('{"memory": {"limit": 1}}', 1, 0),
        ('{"memory": {"limit": 1048576}}', 1, 0),
        ('{"memory": {"limit": 1048577}}', 2, 0),
        ('{"memory": {"limit": -1}}', 0, 0),
        ('{"memory": {"limit": 0}}', 0, 0),
        ('{"memory": {"swap": 5, "reservation": 7}}', 0, 0),
        ('{"cpu": {"quota": 150000}}', 0, 2),
        ('{"cpu": {"quota": 150000, "period": 50000}}', 0, 3),
        ('{"cpu": {"quota": 150000, "period": 0}}', 0, 2),
        ('{"cpu": {"quota": -1, "period": 1}}', 0, 0),
        ('{"cpu": {"shares": 2048, "cpus": "0-7"}}', 0, 0),
    ],
)
def test_limits(text: str, memory_mib: int, cpus: int) -> None:
    one = demand(text)
    assert (one.memory_mib, one.cpus) == (memory_mib, cpus)


def test_a_change_leaves_what_it_does_not_name() -> None:
    before = Demand(memory=5 << 20, quota=300, period=100)
    assert demand("{}", before) == before
    assert demand('{"memory": {"limit": -1}}', before) == Demand(quota=300, period=100)
    assert demand('{"cpu": {"quota": 100}}', before) == Demand(
        memory=5 << 20, quota=100, period=100
    )
    assert demand('{"cpu": {"period": 50}}', before).cpus == 6


def test_the_larger_of_each() -> None:
    first, second = Demand(memory=2, quota=100, period=10), Demand(memory=1, quota=110, period=20)
    for one, other in ((first, second), (second, first)):
        assert one.larger(other) == first
    assert first.larger(Demand()) == Demand().larger(first) == first
