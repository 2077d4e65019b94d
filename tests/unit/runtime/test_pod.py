"""What engines' annotations make of a container: a pod's infra container, a member, or neither."""

import pytest
from fixtures import containers, pods
from sealrun_runtime import pod
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.oci_config import Namespace
from sealrun_runtime.pod import Pod

ID = "c" * 64
POD = "9" * 64
LIBPOD = {"io.container.manager": "libpod"}


def spec(
    args: tuple[str, ...] = ("sh",),
    cgroup: str = "",
    namespaces: tuple[Namespace, ...] = (),
    **annotations: str,
) -> ContainerSpec:
    return containers.spec(
        args=args, annotations=annotations, namespaces=namespaces, cgroups_path=cgroup
    )


@pytest.mark.parametrize("engine", pods.ENGINES, ids=lambda engine: engine.name)
def test_each_engine(engine: pods.Engine) -> None:
    infra = pod.find(spec(engine.pause, **engine.infra(ID)), ID)
    complete = not engine.name.startswith("podman")
    assert infra == Pod(sandbox=ID, infra=True, idle=True, complete=complete)
    assert pod.find(spec(**engine.member(ID)), "d" * 64) == Pod(sandbox=ID)


@pytest.mark.parametrize(
    ("cgroup", "found"),
    [
        (f"/libpod_parent/{POD}/libpod-{ID}", True),
        (f"machine-libpod_pod_{POD}.slice:libpod:{ID}", True),
        (f"/libpod_parent/libpod-{ID}", False),
        (f"machine.slice:libpod:{ID}", False),
        ("", False),
    ],
)
def test_podmans_infra_container_with_a_program_of_the_users(cgroup: str, found: bool) -> None:
    expected = Pod(sandbox=ID, infra=True) if found else None
    assert pod.find(spec(("/my-pause",), cgroup, **LIBPOD), ID) == expected


def test_a_container_that_stands_alone() -> None:
    own = tuple(Namespace(type=kind) for kind in ("pid", "ipc", "uts", "network", "mount"))
    assert pod.find(spec(namespaces=own, **LIBPOD), ID) is None
    joined = Namespace(type="network", path="/run/netns/x")
    assert pod.find(spec(namespaces=(joined,)), ID) is None
    assert pod.find(spec(("/catatonit", "-P")), ID) is None, "it is not Podman's"


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts"])
def test_anothers_namespace_without_a_pod(kind: str) -> None:
    joined = Namespace(type=kind, path="/proc/1/ns/x")
    with pytest.raises(InvalidRequest, match=f"cannot share the {kind} namespace") as error:
        pod.find(spec(namespaces=(joined,)), ID)
    assert error.value.remedy == "put both into one pod"


@pytest.mark.parametrize("kind", ["ipc", "uts", "network", "pid"])
def test_namespaces_of_the_pod(kind: str) -> None:
    joined = Namespace(type=kind, path="/proc/1/ns/x")
    assert pod.find(spec(namespaces=(joined,), **pods.PODMAN.member("x")), ID) == Pod(sandbox="x")


def test_what_is_shared_in_the_guest() -> None:
    member, infra = Pod(sandbox="x"), Pod(sandbox="x", infra=True)
    paths = {"uts": "/proc/1/ns/uts", "pid": "/proc/1/ns/pid", "network": "/run/netns/x"}
    kinds = ("pid", "ipc", "uts", "network", "mount")
    given = spec(namespaces=tuple(Namespace(type=kind, path=paths.get(kind, "")) for kind in kinds))
    assert pod.joins(given, member) == ("pid", "uts")
    assert pod.joins(given, infra) == ("ipc", "uts"), "one that is run: others come to it"
    assert pod.joins(given, None) == ()


def test_another_type_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="neither sandbox nor container: vm"):
        pod.find(spec(**{"io.kubernetes.cri-o.ContainerType": "vm"}), ID)
