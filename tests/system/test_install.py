"""install.sh on this machine, into a prefix of its own: whole, again, over itself, and away."""

import os
import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.root]

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path("/var/cache/sealrun")
PODMAN_DEFAULTS = Path("/usr/share/containers/containers.conf")
SITE_PACKAGES = [Path("/usr/lib/python3/dist-packages"), Path("/usr/local/lib/python3.11")]


@dataclass(frozen=True)
class Machine:
    """A copy of the checkout, and where it is installed to."""

    checkout: Path
    root: Path

    @property
    def prefix(self) -> Path:
        return self.root / "prefix"

    def install(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run install.sh with directories of its own."""
        directories = [f"--{name}={self.root / name}" for name in ("prefix", "sysconfdir", "cache")]
        return subprocess.run(
            [self.checkout / "install.sh", *directories, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def sealrun(self) -> subprocess.CompletedProcess[str]:
        """The installed program's --version."""
        program = self.prefix / "bin/sealrun"
        return subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)

    def tree(self) -> dict[str, tuple[int, int]]:
        """Every installed file with its inode and time of change."""
        found = {}
        for directory, _, files in os.walk(self.prefix):
            for name in files:
                status = os.lstat(os.path.join(directory, name))
                found[os.path.join(directory, name)] = (status.st_ino, status.st_mtime_ns)
        return found


def _not_committed(directory: str, names: list[str]) -> set[str]:
    top = {"build"} if Path(directory) == CHECKOUT else set()
    return {name for name in names if name in top or name == "__pycache__" or name[0] == "."}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Installed once; the downloads that this machine has already are shared by hard links."""
    root = tmp_path_factory.mktemp("install")
    shutil.copytree(CHECKOUT, root / "checkout", ignore=_not_committed, symlinks=True)
    if CACHE.is_dir():
        subprocess.run(["cp", "-al", CACHE, root / "cache"], check=True)
    machine = Machine(root / "checkout", root)
    for name in ("crio", "containerd/conf.d"):
        (root / "sysconfdir" / name).mkdir(parents=True)
    (root / "sysconfdir/containerd/config.toml").write_text("version = 3\n")
    before = {path: sorted(os.listdir(path)) for path in SITE_PACKAGES if path.is_dir()}
    done = machine.install()
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == {path: sorted(os.listdir(path)) for path in before}, "nothing into the system"
    yield machine
    (machine.prefix / "lib/.sealrun.new").mkdir()  # as an installation that is killed leaves it
    removed = machine.install("--uninstall")
    assert removed.returncode == 0, removed.stderr
    left = [str(path) for path in root.rglob("*") if not path.is_relative_to(root / "checkout")]
    assert not [path for path in left if "sealrun" in path.removeprefix(str(root))], left


def test_it_runs_and_its_bytecode_is_there(machine: Machine) -> None:
    assert machine.sealrun().stdout.startswith("sealrun ")
    broker = subprocess.run(
        [machine.prefix / "bin/sealrun-broker", "--help"], capture_output=True, text=True
    )
    assert broker.returncode == 0, broker.stderr
    library = machine.prefix / "lib/sealrun"
    for source in library.rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        assert compiled.is_file(), source
        header = compiled.read_bytes()[:8]
        assert header[4:] == b"\x01\0\0\0", "unchecked hash: no look at the source at each start"
    assert (machine.prefix / "share/sealrun/guest/manifest.json").is_file()
    assert not (library / "guest-agent/sealrun_agent").exists(), "the agent is the guest's alone"


def test_who_leaves_takes_only_its_own(tmp_path: Path) -> None:
    """Drop-ins that name this installation, another one, and one that is gone."""
    programs = {
        "containers/containers.conf.d/50-sealrun.conf": tmp_path / "other/bin/sealrun",
        "crio/crio.conf.d/50-sealrun.conf": tmp_path / "prefix/bin/sealrun",
        "containerd/conf.d/50-sealrun.toml": tmp_path / "gone/bin/sealrun",
    }
    other, *_ = programs.values()
    other.parent.mkdir(parents=True)
    other.touch()
    for name, program in programs.items():
        file = tmp_path / "sysconfdir" / name
        file.parent.mkdir(parents=True)
        file.write_text(f'x = 1\nsealrun = ["{program}"]\n')
    done = Machine(CHECKOUT, tmp_path).install("--uninstall")
    assert done.returncode == 0, done.stderr
    (left,) = (path for path in (tmp_path / "sysconfdir").rglob("*") if path.is_file())
    assert str(other) in left.read_text()
    assert f"left {left}: it names {other}" in done.stdout


def test_again_it_changes_nothing(machine: Machine) -> None:
    before = machine.tree()
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert machine.tree() == before
    assert done.stdout.count("up to date") == 2
    assert "wrote" not in done.stdout


def test_whoever_calls_during_an_update_meets_a_whole_program(machine: Machine) -> None:
    source = machine.checkout / "runtime/sealrun_runtime/version.py"
    source.write_text(source.read_text() + "\n# changed\n")
    inode = (machine.prefix / "lib/sealrun").stat().st_ino
    over = threading.Event()
    failures: list[str] = []
    calls = 0

    def call() -> None:
        nonlocal calls
        while not over.is_set():
            outcome = machine.sealrun()
            calls += 1
            if outcome.returncode != 0:
                failures.append(outcome.stderr)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        done = machine.install()
    finally:
        over.set()
        caller.join()
    assert done.returncode == 0, done.stderr
    assert (machine.prefix / "lib/sealrun").stat().st_ino != inode
    assert calls > 5
    assert not failures, failures[0]
    installed = machine.prefix / "lib/sealrun/runtime/sealrun_runtime/version.py"
    assert installed.read_text().endswith("# changed\n")


def test_what_others_left(machine: Machine, tmp_path: Path) -> None:
    """A run that was interrupted: its halves do no harm. Another installation: an engine knows one by name,
    and the later says whose place it takes."""
    dropin = machine.root / "sysconfdir/containers/containers.conf.d/50-sealrun.conf"
    other = tmp_path / "prefix/bin/sealrun"
    other.parent.mkdir(parents=True)
    other.touch()
    text = dropin.read_text()
    dropin.write_text(text.replace(f"{machine.prefix}/bin/sealrun", str(other)))
    for name in ("lib/.sealrun.new", "share/sealrun/.guest.new"):
        (machine.prefix / name).mkdir()
        (machine.prefix / name / "half").write_text("half")
    (machine.prefix / "lib/sealrun/.digest").write_text("of something else\n")
    done = machine.install()
    assert done.returncode == 0, done.stderr
    assert f"which named {other} until now" in done.stdout
    assert dropin.read_text() == text
    assert machine.sealrun().returncode == 0
    assert not list(machine.prefix.rglob("*.new"))
    assert not list(machine.prefix.rglob("half"))


def test_podmans_own_runtimes_keep_their_place(machine: Machine) -> None:
    """A list in a drop-in replaces Podman's own: ours has to repeat it."""
    path = machine.root / "sysconfdir/containers/containers.conf.d/50-sealrun.conf"
    engine = tomllib.loads(path.read_text())["engine"]
    assert engine["runtimes"] == {"sealrun": [str(machine.prefix / "bin/sealrun")]}
    found = re.search(r"^#?runtime_supports_json = (\[.*\])$", PODMAN_DEFAULTS.read_text(), re.M)
    assert found is not None
    defaults = tomllib.loads(f"names = {found[1]}")["names"]
    assert set(engine["runtime_supports_json"]) == {*defaults, "sealrun"}


def test_other_engines_find_theirs(machine: Machine, tmp_path: Path) -> None:
    """CRI-O's and that of containerd 2 are in their places, since these were there; all of them name this
    installation."""
    program = str(machine.prefix / "bin/sealrun")
    kept = machine.prefix / "share/sealrun"
    crio = (machine.root / "sysconfdir/crio/crio.conf.d/50-sealrun.conf").read_text()
    assert (kept / "crio/50-sealrun.conf").read_text() == crio
    (handler,) = tomllib.loads(crio)["crio"]["runtime"]["runtimes"].items()
    appended = (kept / "containerd/sealrun.toml").read_text()
    plugin = tomllib.loads(appended)["plugins"]["io.containerd.grpc.v1.cri"]
    (other,) = plugin["containerd"]["runtimes"].items()
    assert handler[1]["runtime_path"] == other[1]["options"]["BinaryName"] == program
    imported = (machine.root / "sysconfdir/containerd/conf.d/50-sealrun.toml").read_text()
    plugin = tomllib.loads(imported)["plugins"]["io.containerd.cri.v1.runtime"]
    assert list(plugin["containerd"]["runtimes"].items()) == [other]
    document = yaml.safe_load((kept / "kubernetes/runtime-class.yaml").read_text())
    assert document["handler"] == handler[0] == other[0]
    settings = tmp_path / "config.toml"
    settings.write_text("version = 2\n" + appended)
    done = subprocess.run(
        ["containerd", "--config", str(settings), "config", "dump"],
        capture_output=True,
        text=True,
    )
    assert f'BinaryName = "{program}"' in done.stdout, done.stderr


def test_it_is_not_removed_under_a_running_sandbox(machine: Machine) -> None:
    shim = machine.prefix / "lib/sealrun/runtime/bin/sealrun-shim"
    with subprocess.Popen(["/usr/bin/python3", "-c", "input()", shim], stdin=subprocess.PIPE) as it:
        refused = machine.install("--uninstall")
        it.communicate(b"\n")
    assert refused.returncode == 1
    assert f"shim pids {it.pid}" in refused.stderr
    assert machine.sealrun().returncode == 0


def test_removing_it_takes_nothing_of_anybody_elses(tmp_path: Path) -> None:
    """Any directory may be given, a home too: only what an installation put there goes."""
    ours = {
        "cache": "guest-image/package.deb",
        "prefix": "share/sealrun/sealrun.toml",
        "above/sysconfdir": "containers/containers.conf.d/50-sealrun.conf",
    }
    more = ["above/sysconfdir/crio/crio.conf.d/50-sealrun.conf"]
    theirs = [f"{name}/theirs" for name in ("cache", "prefix/share", "prefix/lib")]
    more += ["above/sysconfdir/containerd/conf.d/50-sealrun.toml"]
    theirs += ["above/sysconfdir/crio/theirs", "above/sysconfdir/containerd/conf.d/theirs"]
    for name in [*theirs, *more, *(f"{directory}/{name}" for directory, name in ours.items())]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    directories = [f"--{Path(name).name}={tmp_path / name}" for name in ours]
    done = subprocess.run(
        [CHECKOUT / "install.sh", *directories, "--uninstall"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    empty = ["above", "above/sysconfdir", "cache", "prefix", "prefix/lib", "prefix/share"]
    empty += [f"above/sysconfdir/{name}" for name in ("crio", "containerd", "containerd/conf.d")]
    assert left == sorted([*empty, *theirs])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prefix"], "--prefix needs a directory"),
        (["--prefix=relative"], "absolute path"),
        (["--prefix=/"], "absolute path"),
        (["--prefix=/a b"], "special characters"),
        (["--frobnicate"], "unknown argument '--frobnicate'"),
        (["--uninstall", "--demo"], "exclude each other"),
    ],
)
def test_arguments_that_are_refused(options: list[str], words: str) -> None:
    refused = subprocess.run(
        [CHECKOUT / "install.sh", *options], capture_output=True, text=True, timeout=30
    )
    assert refused.returncode == 1
    assert words in refused.stderr


def test_a_damaged_checkout_is_refused_in_one_line(machine: Machine, tmp_path: Path) -> None:
    shutil.copytree(machine.checkout, tmp_path / "checkout", symlinks=True)
    shutil.rmtree(tmp_path / "checkout/vmm")
    refused = Machine(tmp_path / "checkout", tmp_path).install()
    assert refused.returncode == 1
    assert refused.stderr.startswith("install.sh: cannot install: ")
    assert "vmm/sealrun_vmm is missing" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
