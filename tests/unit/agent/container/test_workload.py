"""What the host may choose where a tenant asked for protection."""

from typing import Any

import msgspec
import pytest
from sealrun_agent.container.runtime_spec import Device, Linux, Mount, Process, Root, Spec, User
from sealrun_agent.container.spec import Accepted, OwnVolume
from sealrun_agent.container.workload import (
    Program,
    Tenant,
    check_shares,
    check_terminal,
    check_volumes,
    may_execute,
    may_read,
    restrict,
)
from sealrun_agent.errors import StartError
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import Container, Host
from sealrun_protocol.volume import Volume

PROGRAM = Program(args=("/app", "serve"), env=("A=image",), cwd="/srv", uid=7, gid=8, groups=(9,))


def spec(*mounts: Mount, **process: Any) -> Spec:
    members = {"args": PROGRAM.args, "cwd": "/", "user": User(uid=0, gid=0, umask=0o22)} | process
    return Spec(
        ociVersion="1.0.2",
        process=Process(**members),
        root=Root(path=""),
        linux=Linux(),
        mounts=mounts,
    )


def tenant(*places: str, root: bool = False, **container: Any) -> Tenant:
    host = Host(insecure_shared_root=root, insecure_shared_directories=places)
    return Tenant(Container(**container), host)


def denial(given: Spec, by: Tenant) -> str:
    with pytest.raises(StartError) as caught:
        restrict(given, PROGRAM, by)
    assert caught.value.code is ErrorCode.POLICY_DENIED
    return str(caught.value)


def test_what_engines_always_set_gives_way_to_the_image_s() -> None:
    program = PROGRAM._replace(env=("TERM=image",))
    process = restrict(spec(env=("TERM=host",)), program, tenant()).process
    assert "TERM=image" in (process.env or ())
    assert "TERM=host" not in (process.env or ())


def test_the_process_is_the_image_s() -> None:
    given = spec(env=("TERM=x", "PATH=/evil", "HOSTNAME=h"))
    process = restrict(given, PROGRAM, tenant()).process
    assert process.args == PROGRAM.args
    assert (process.cwd, process.user) == (
        "/srv",
        User(uid=7, gid=8, umask=0o22, additionalGids=(9,)),
    )
    assert set(process.env or ()) == {
        "A=image",
        "TERM=x",
        "HOSTNAME=h",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def test_what_the_host_may_choose_by_name() -> None:
    refused = denial(spec(args=("/bin/sh", "-c", "a\nb")), tenant())
    words = r"""process.args: ["/bin/sh", "-c", "a\nb"] is not the image's own program"""
    assert refused.startswith(words)
    allowed = tenant(commands=(("/bin/sh",),), environment=("B", "C_*"))
    given = spec(args=("/bin/sh",), env=("B=1", "C_D=2"))
    assert {"B=1", "C_D=2"} <= set(restrict(given, PROGRAM, allowed).process.env or ())
    assert "the host may not set 'A'" in denial(spec(env=("A=host",)), allowed)
    assert "the host may not set 'LD_PRELOAD'" in denial(spec(env=("LD_PRELOAD=x",)), allowed)
    any_process = tenant(insecure_any_process=True)
    assert restrict(given, PROGRAM, any_process) is given


def test_mounts_stand_where_engines_always_have_them_or_where_the_tenant_says() -> None:
    usual = [Mount(path, "tmpfs") for path in ("/proc", "/dev/shm", "/tmp")]
    copies = [Mount(path, "bind") for path in ("/etc/hosts", "/run/secrets/key")]
    assert restrict(spec(*usual, *copies), PROGRAM, tenant()).mounts == (*usual, *copies)
    for place in ("/usr/bin", "/run/secrets", "/run/secretsX/key", "/data"):
        text = denial(spec(*usual, Mount(place, "tmpfs")), tenant())
        assert text.startswith(f"mounts[3]: nothing may be mounted at '{place}'")
    for kind in ("tmpfs", "bind"):
        restrict(spec(Mount("/data/sub", kind)), PROGRAM, tenant("/data"))
        denial(spec(Mount("/database", kind)), tenant("/data"))


@pytest.mark.parametrize(
    ("linux", "why"),
    [
        ({"maskedPaths": ("/proc/kcore", "/sys/firmware", "/proc/scsi")}, ""),
        ({"maskedPaths": ("/proc/kcore", "/etc/app.conf")}, "linux.maskedPaths[1]: nothing may be"),
        ({"maskedPaths": ("/",)}, "nothing may be hidden at '/'"),
        ({"maskedPaths": ("/process",)}, "nothing may be hidden at '/process'"),
        ({"maskedPaths": ("/shared/x",)}, ""),
        ({"devices": (Device("/dev/urandom", "c", 1, 9), Device("/dev/mine", "c", 1, 5))}, ""),
        ({"devices": (Device("/dev/urandom", "c", 1, 5),)}, "linux.devices[0]: another device is"),
        ({"devices": (Device("/dev//urandom/", "u", 1, 5),)}, "is called '/dev//urandom/'"),
        ({"devices": (Device("/dev/random", "b", 1, 8),)}, "another device is called"),
        ({"devices": (Device("/dev/null", "p"),)}, "another device is called"),
    ],
)
def test_no_file_is_masked_and_no_device_has_another_s_name(
    linux: dict[str, Any], why: str
) -> None:
    given = msgspec.structs.replace(spec(), linux=Linux(**linux))
    allowed = tenant("/shared/x")
    if why:
        assert why in denial(given, allowed)
    else:
        assert restrict(given, PROGRAM, allowed).linux == given.linux
    assert restrict(given, PROGRAM, tenant(insecure_any_process=True)) is given


def test_directories_of_the_host_are_the_tenant_s_to_allow() -> None:
    check_shares(("/",), None, root=True)
    check_shares((), tenant(), root=False)
    check_shares(("/data", "/data/x"), tenant("/data", root=True), root=True)
    for shared, root, by in (
        (("/data",), False, tenant()),
        (("/data",), False, tenant(insecure_any_process=True)),
        (("/data", "/etc/app"), False, tenant("/data", root=True)),
        ((), True, tenant("/")),
    ):
        with pytest.raises(StartError, match=r"\[host\] of the init-data does not allow") as caught:
            check_shares(shared, by, root=root)
        assert caught.value.code is ErrorCode.POLICY_DENIED


def test_volumes_of_the_sandbox_s_own_hide_nothing_of_the_image() -> None:
    program = PROGRAM._replace(volumes=("/data/",))

    def checked(place: str, by: Tenant, subpath: str = "", *, file: bool = False) -> bool:
        volume = Volume(name="v", subpath=subpath, file=file)
        given = Accepted(spec(), {}, (), {"3": OwnVolume(place, volume)}, {}, {})
        return check_volumes(given, program, by).volumes["3"].volume.copy_up

    assert checked("/data", tenant()), "it begins with what the image has there"
    for place in ("/tmp", "/run", "/var/tmp", "/run/secrets", "/dev/termination-log"):
        assert not checked(place, tenant())
    assert not checked("/cache", tenant(volumes=("/cache",)))
    assert not checked("/cache", tenant("/cache"))
    assert not checked("/usr", tenant(insecure_any_process=True))
    assert not checked("/cache", tenant("/cache"), "part")
    with pytest.raises(StartError, match=r"mounts\[3\]: no volume may be mounted at"):
        checked("/data", tenant(), file=True)
    for place in ("/usr", "/data/sub", "/run/secrets/key", "/tmpx", "//tmp", "/data"):
        with pytest.raises(StartError, match=r"mounts\[3\]: no volume may be mounted at") as caught:
            checked(place, tenant(), "part" if place == "/data" else "")
        assert caught.value.code is ErrorCode.POLICY_DENIED


def test_exec() -> None:
    assert may_execute(None)
    assert not may_execute(tenant())
    assert may_execute(tenant(allow_exec=True))
    assert may_execute(tenant(insecure_any_process=True))


def test_output() -> None:
    withheld = tenant()._replace(output=False)
    assert may_read(None) and may_read(tenant()) and not may_read(withheld)
    check_terminal(True, tenant())
    check_terminal(False, withheld)
    with pytest.raises(StartError, match=r"^process\.terminal: "):
        check_terminal(True, withheld)
