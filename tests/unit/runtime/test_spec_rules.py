"""What a VM cannot have, or has no use for: by rule, and nothing else."""

import json
from typing import Any

import pytest
from fixtures import documentation
from fixtures.guest_config import MINIMAL
from fixtures.guest_config import accept as accepted_by_the_guest
from fixtures.guest_config import refusal as refused_by_the_guest
from sealrun_runtime import bundle, spec_rules
from sealrun_runtime.errors import InvalidRequest

SAMPLES: dict[str, Any] = {
    "$.linux.resources.blockIO": {"weight": 500},
    "$.linux.resources.hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
    "$.linux.resources.network": {"classID": 1},
    "$.linux.resources.rdma": {"mlx5_1": {"hcaHandles": 3}},
    "$.linux.resources.memory.disableOOMKiller": True,
    "$.linux.resources.memory.useHierarchy": True,
    "$.linux.resources.cpu.cpus": "0-3",
    "$.linux.resources.cpu.mems": "0",
    "$.mounts[].uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
    "$.mounts[].gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
    "$.linux.seccomp.listenerPath": "/run/listener",
    "$.linux.seccomp.listenerMetadata": "words",
}
"""A value that means something, where a number or an object will not do."""


def with_part(path: str, value: Any) -> dict[str, Any]:
    """A configuration that has `value` at `path`."""
    document: dict[str, Any] = json.loads(json.dumps(MINIMAL))
    document["mounts"] = [{"destination": "/x", "type": "tmpfs"}]
    document["linux"] = {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}
    names = path.removeprefix("$.").split(".")
    place: Any = document
    for name in names[:-1]:
        place = place["mounts"][0] if name == "mounts[]" else place.setdefault(name, {})
    place[names[-1]] = value
    return document


def sample(path: str) -> Any:
    if path in SAMPLES:
        return SAMPLES[path]
    return 5 if ".memory." in path or ".cpu." in path else "a" if "process" in path else {"a": 1}


@pytest.mark.parametrize("path", spec_rules.REFUSED)
def test_refused_with_the_place_and_the_reason(path: str) -> None:
    content = json.dumps(with_part(path, sample(path))).encode()
    with pytest.raises(InvalidRequest) as caught:
        bundle.parse(content, "/bundle")
    assert caught.value.text == f"{path.replace('[]', '[0]')}: {spec_rules.REFUSED[path]}"


@pytest.mark.parametrize("path", spec_rules.REFUSED)
def test_the_guest_refuses_it_too(path: str) -> None:
    last = path.rpartition(".")[2]
    assert last in refused_by_the_guest(with_part(path, sample(path)))


@pytest.mark.parametrize("path", [*spec_rules.REFUSED, *spec_rules.LEFT_OUT])
def test_what_means_nothing_is_not_given(path: str) -> None:
    value = sample(path)
    nothing: Any = None
    if isinstance(value, str):
        nothing = ""
    elif isinstance(value, bool):
        nothing = False
    content = json.dumps(with_part(path, nothing)).encode()
    assert spec_rules.apply(content) == ()


def value_left_out(path: str) -> Any:
    return "label" if path == "$.linux.mountLabel" else sample(path)


@pytest.mark.parametrize("path", spec_rules.LEFT_OUT)
def test_left_out_with_a_word(path: str) -> None:
    content = json.dumps(with_part(path, value_left_out(path))).encode()
    spec = bundle.parse(content, "/bundle")
    assert spec.left_out == (f"{path} is left out: {spec_rules.LEFT_OUT[path]}",)


@pytest.mark.parametrize("path", spec_rules.LEFT_OUT)
def test_the_guest_leaves_it_out_too(path: str) -> None:
    document = with_part(path, value_left_out(path))
    last = path.rpartition(".")[2]
    assert f'"{last}"' not in json.dumps(accepted_by_the_guest(document))


def test_the_documentation_says_the_same() -> None:
    for heading, rules in (("Refused", spec_rules.REFUSED), ("Left out", spec_rules.LEFT_OUT)):
        rows = documentation.table("docs/runtime-spec.md", heading)
        assert {path.strip("`"): why for path, why in rows} == dict(rules)
