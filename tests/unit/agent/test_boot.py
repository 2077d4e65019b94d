"""The set-up of the VM: what can be seen without being PID 1. The whole boot runs in
tests/system/test_guest_image.py, and the mounts in a mount namespace of their own here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sealrun_agent import boot, main
from sealrun_agent.errors import BootError
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode

ROOTS = os.pathsep.join(sys.path)


def in_namespaces(code: str) -> str:
    """The output of `code` as the first process of pid, mount, net and uts namespaces of its own."""
    command = ["unshare", "--pid", "--fork", "--mount", "--net", "--uts", "--kill-child"]
    result = subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": ROOTS, "PATH": os.environ["PATH"]},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_name_of_the_port_is_the_protocols() -> None:
    assert boot.CHANNEL_PORT_NAME == messages.CHANNEL_PORT_NAME
    assert boot.CHANNEL_VSOCK_PORT == messages.CHANNEL_VSOCK_PORT


def test_every_mount_stands_below_what_was_mounted_before() -> None:
    targets = [mount.target for mount in boot.mounts(1 << 20)]
    assert len(set(targets)) == len(targets)
    for index, target in enumerate(targets):
        assert not any(later.startswith(f"{target}/") for later in targets[:index]), target


def test_a_module_is_cut_where_its_signature_begins() -> None:
    signature = b"PKCS #7, with a mark: " + b"~Module signature appended~\n"
    about = b"\0\0\2\0\0\0\0\0" + len(signature).to_bytes(4, "big")
    signed = b"\x7fELF module" + signature + about + b"~Module signature appended~\n"
    assert boot.without_signature(signed) == b"\x7fELF module"
    assert boot.without_signature(b"\x7fELF module") == b"\x7fELF module"


def test_kernel_file_systems_run_no_programs() -> None:
    for mount in boot.mounts(1 << 20):
        if mount.kind in {"proc", "sysfs", "cgroup2", "devtmpfs", "devpts"}:
            assert mount.flags & 8, f"{mount.target} allows programs"


def test_containers_get_inodes_for_small_files() -> None:
    (run,) = (mount for mount in boot.mounts(1 << 20) if mount.target == "/run")
    assert "nr_inodes=262144" in run.options.split(",")


@pytest.mark.parametrize(("memory", "size"), [(1024, 832), (400, 208), (200, 50)])
def test_containers_get_the_memory_that_is_not_reserved(memory: int, size: int) -> None:
    (run,) = (mount for mount in boot.mounts(memory << 10) if mount.target == "/run")
    assert f"size={size << 10}k" in run.options.split(",")


@pytest.fixture
def ports(tmp_path: Path) -> Path:
    for name, label in (
        ("vport0p0", None),
        ("vport0p1", "org.other"),
        ("vport0p2", "sealrun.agent"),
    ):
        (tmp_path / name).mkdir()
        if label is not None:
            (tmp_path / name / "name").write_text(f"{label}\n")
    return tmp_path


def test_the_port_is_found_by_its_name(ports: Path) -> None:
    assert boot.find_port("sealrun.agent", str(ports)) == "/dev/vport0p2"
    assert boot.find_port("sealrun", str(ports)) is None
    assert boot.find_port("sealrun.agent", str(ports / "nowhere")) is None


def test_no_port_is_an_error_after_a_while() -> None:
    with pytest.raises(BootError, match=r"cannot find the virtio-serial port x: ") as caught:
        boot.open_port("x", seconds=0.01)
    assert caught.value.code is ErrorCode.BOOT_FAILED


def test_the_device_decides_on_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "open_port", lambda: 3)
    monkeypatch.setattr(boot, "connect_vsock", lambda: 4)
    assert boot.open_channel({"virtio-3", "virtio-4"}) == 3
    assert boot.open_channel({"virtio-19", "virtio-4"}) == 4


def test_a_host_that_does_not_listen_is_an_error() -> None:
    with pytest.raises(
        BootError, match=r"cannot connect to the host's vsock port 1024: "
    ) as caught:
        boot.connect_vsock(cid=1)  # this very machine, which has nothing there
    assert caught.value.code is ErrorCode.BOOT_FAILED


def test_the_devices_name_their_modules(tmp_path: Path) -> None:
    for device, kind in (("virtio0", "0x0003"), ("virtio1", "0x001a"), ("virtio2", "0x0003")):
        (tmp_path / device).mkdir()
        (tmp_path / device / "device").write_text(f"{kind}\n")
    assert boot.device_groups(str(tmp_path)) == {"virtio-3", "virtio-26"}


@pytest.mark.parametrize(
    ("tees", "loaded"),
    [
        ((), {"virtio-2", "virtio-5", "virtio-24", "virtio-27"}),
        (("tee-snp",), {"virtio-2", "tee-snp"}),
        (("tee-tdx",), {"virtio-2", "tee-tdx"}),
    ],
)
def test_a_tee_s_guest_has_no_driver_for_memory_of_the_host(
    tees: tuple[str, ...], loaded: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither at the boot nor for a device that comes later."""
    devices = {"virtio-2", "virtio-5", "virtio-24", "virtio-27"}
    assert boot.drivers(devices, tees) == loaded
    asked: list[set[str]] = []
    monkeypatch.setattr(boot, "device_groups", lambda: devices)
    monkeypatch.setattr(boot, "tee_groups", lambda: set(tees))
    monkeypatch.setattr(boot, "load_modules", asked.append)
    boot.load_drivers()
    assert asked == [loaded]


def test_modules_load_in_order_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "order").write_text("channel a\nchannel b\nvirtio-1 x\nvirtio-2 x\nvirtio-2 y\n")
    loaded: list[str] = []
    monkeypatch.setattr(boot, "MODULES", str(tmp_path))
    monkeypatch.setattr(boot, "_load_module", loaded.append)
    boot.load_modules({"channel"})
    assert loaded == ["a", "b"]
    boot.load_modules({"virtio-1", "virtio-2", "virtio-9"})
    assert loaded[2:] == ["x", "y"]


def test_a_module_that_the_kernel_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "order").write_text("channel nonsense\n")
    (tmp_path / "nonsense.ko").write_bytes(b"no module")
    monkeypatch.setattr(boot, "MODULES", str(tmp_path))
    with pytest.raises(BootError, match="cannot load the module nonsense: "):
        boot.load_modules({"channel"})


@pytest.mark.root
def test_loopback_comes_up() -> None:
    code = """
import fcntl, _socket
from sealrun_agent import boot
boot.loopback_up()
s = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
flags = fcntl.ioctl(s.fileno(), 0x8913, b"lo".ljust(40, b"\\0"))  # SIOCGIFFLAGS
print(flags[16] & 1)
"""
    assert in_namespaces(code) == "1\n"


@pytest.mark.root
def test_the_root_can_be_pivoted_and_everything_is_mounted(tmp_path: Path) -> None:
    """A tmpfs with a bind of this machine's /usr takes the initramfs's place, another tmpfs that of
    devtmpfs, of which there is one for the whole machine."""
    code = f"""
import os
from sealrun_agent import boot
boot._mount("none", "/", "", boot._REC | boot._PRIVATE, "")
boot._mount("tmpfs", {str(tmp_path)!r}, "tmpfs", 0, "")
os.chdir({str(tmp_path)!r})
for name in ("usr", "proc", "sys", "dev", "run", "tmp"):
    os.mkdir(name)
boot._mount("/usr", "usr", "", boot._BIND, "")
os.chroot(".")
wanted = [m._replace(kind=m.kind.replace("devtmpfs", "tmpfs")) for m in boot.mounts(1 << 20)]
boot.mounts = lambda memory_kib: wanted
boot.move_root()
boot.mount_all()
table = [line.split() for line in open("/proc/self/mounts")]
print(*(f"{{row[1]}}={{row[2]}}" for row in table))
print(os.readlink("/dev/fd"), oct(os.stat("/tmp").st_mode), oct(os.stat("/run").st_mode))
libc = boot._libc
os.makedirs("/run/new/old")
boot._mount("tmpfs", "/run/new", "tmpfs", 0, "")
os.mkdir("/run/new/old")
print(libc.syscall(155, b"/run/new", b"/run/new/old"))  # pivot_root, which crun needs
"""
    mounted, modes, pivoted = in_namespaces(code).splitlines()
    for mount in boot.mounts(1 << 20):
        assert f"{mount.target}={mount.kind.replace('devtmpfs', 'tmpfs')}" in mounted.split()
    assert modes == "/proc/self/fd 0o41777 0o40755"
    assert pivoted == "0"


def words_of(error: BaseException, capfd: pytest.CaptureFixture[str]) -> str:
    main.last_words("boot failed", error)
    return capfd.readouterr().err


def test_last_words_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    error = BootError(ErrorCode.BOOT_FAILED, "cannot mount x:\n\tno such device")
    assert words_of(error, capfd) == "sealrun-agent: boot failed: cannot mount x: no such device\n"


def test_last_words_of_a_failure_that_nobody_foresaw(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        os.stat("/nowhere")
    except OSError as error:
        words = words_of(error, capfd)
    assert words.startswith("sealrun-agent: boot failed: FileNotFoundError: [Errno 2] ")
    assert "test_boot.py:" in words
    assert len(words_of(RuntimeError("x" * 5000), capfd)) <= 1001


def test_last_words_without_a_reason(capfd: pytest.CaptureFixture[str]) -> None:
    assert words_of(KeyboardInterrupt(), capfd).endswith("KeyboardInterrupt: no reason given\n")


@pytest.mark.parametrize(
    ("path", "content", "groups"),
    [
        (None, "", set()),
        ("sys/devices/platform/sev-guest", "", {"tee-snp"}),
        ("proc/cpuinfo", "processor: 0\nflags\t\t: fpu tdx_guest sse\n", {"tee-tdx"}),
        ("proc/cpuinfo", "flags\t\t: fpu not_tdx_guest\n", set()),
    ],
)
def test_the_tee_s_modules_go_by_what_the_cpu_says(
    tmp_path: Path, path: str | None, content: str, groups: set[str]
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("flags\t\t: fpu\n")
    if path is not None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert boot.tee_groups(str(tmp_path)) == groups
