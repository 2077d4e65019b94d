"""The builder's inputs: bytecode, apt sources, wheels, and what it says where one is missing."""

import marshal
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sealrun_guest_image import apt, bytecode, cli, contents, suite, wheels
from sealrun_guest_image.errors import BuildError

BUILD = Path(__file__).parents[3] / "guest-agent/image/build"

SOURCE = b'''"""A docstring."""
NAMES = {"b", "a", "c"}
def holds(x):
    """Another."""
    assert x, "never"
    return x in {"one", "two", "three", "four", "five"}
'''


def test_bytecode_is_the_same_every_time() -> None:
    sources = [bytecode.Source(f"/usr/lib/{n}.py", SOURCE, n % 3) for n in range(5)]
    assert bytecode.compile_all(sources) == bytecode.compile_all(sources)


def test_nothing_is_written_into_the_checkout(tmp_path: Path) -> None:
    """It runs as root, and the checkout is somebody else's."""
    package = Path(bytecode.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, tmp_path / "sealrun_guest_image", ignore=ignored)
    compile_something = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from sealrun_guest_image import bytecode\n"
        "assert bytecode.compile_all([bytecode.Source('/x.py', b'', 0)])"
    )
    subprocess.run([sys.executable, "-IB", "-c", compile_something], check=True, timeout=60)
    assert not list(tmp_path.rglob("__pycache__"))


def test_bytecode_is_unchecked_and_names_the_guests_path() -> None:
    (compiled,) = bytecode.compile_all([bytecode.Source("/usr/lib/x.py", SOURCE, 0)])
    assert compiled[4:8] == b"\x01\0\0\0"  # PEP 552: hash-based, not checked
    code = marshal.loads(compiled[16:])
    assert code.co_filename == "/usr/lib/x.py"
    assert b"never" in compiled
    assert b"Another." in compiled


def test_asserts_and_docstrings_go_where_they_are_not_ours() -> None:
    (compiled,) = bytecode.compile_all([bytecode.Source("/x.py", SOURCE, 2)])
    assert b"never" not in compiled
    assert b"Another." not in compiled


def test_a_syntax_error_names_itself() -> None:
    with pytest.raises(BuildError, match="cannot compile the guest's Python modules: SyntaxError"):
        bytecode.compile_all([bytecode.Source("/x.py", b"def", 0)])


ONE_LINE = """
# deb http://commented/debian bookworm main
deb-src http://sources/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://security/debian bookworm-security main
deb [signed-by=/k.gpg] http://archive/debian bookworm main contrib
"""
DEB822 = """Types: deb deb-src
# a remark
URIs: http://archive/debian
Suites: bookworm
  bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: http://other
Suites: nodistro
"""


@pytest.mark.parametrize(
    ("file", "text", "options"),
    [
        ("sources.list", ONE_LINE, "[signed-by=/k.gpg]"),
        ("sources.list.d/x.list", ONE_LINE, "[signed-by=/k.gpg]"),
        ("sources.list.d/x.sources", DEB822, "[signed-by=/usr/share/keyrings/k.gpg]"),
    ],
)
def test_a_newer_suite_comes_from_the_hosts_own_source(
    tmp_path: Path, file: str, text: str, options: str
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / file).write_text(text)
    assert suite.find("bookworm", str(tmp_path)) == ("http://archive/debian", options)


@pytest.mark.parametrize("text", ["", ONE_LINE.replace("bookworm", "trixie")])
def test_no_source_to_derive_from(tmp_path: Path, text: str) -> None:
    (tmp_path / "sources.list").write_text(text)
    with pytest.raises(BuildError, match="no apt source of this host serves bookworm"):
        suite.find("bookworm", str(tmp_path))


def test_a_source_that_is_switched_off(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/x.sources").write_text("Enabled: no\n" + DEB822)
    with pytest.raises(BuildError):
        suite.find("bookworm", str(tmp_path))


def test_libraries_follow_libraries_and_not_programs() -> None:
    found = apt.Apt().libraries(["crun", "libpython3.11-stdlib"])
    assert {
        "libc6",
        "libseccomp2",
        "libsystemd0",
        "libgcrypt20",
        "libgpg-error0",
        "libssl3",
    } <= found
    assert "libelogind0" not in found  # says that it provides libsystemd0
    assert "libperl5.36" not in found  # libssl3 needs debconf, which needs perl


def test_a_package_that_does_not_exist() -> None:
    with pytest.raises(BuildError, match="no-such-package-of-ours") as caught:
        apt.Apt().resolve(["no-such-package-of-ours"])
    assert caught.value.remedy


def test_a_package_in_the_cache_is_not_believed(tmp_path: Path) -> None:
    package = apt.Package("crun", "1", "crun_1_amd64.deb", 3, "0" * 64)
    (tmp_path / package.file).write_bytes(b"xxx")
    with pytest.raises(BuildError):  # it is fetched again, and there is no version 1
        apt.Apt().download([package], str(tmp_path))


def test_a_wheel_that_is_not_pinned_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "evil-1-py3-none-any.whl").write_bytes(b"PK")
    requirements = tmp_path / "guest.txt"
    requirements.write_text("# nothing pinned\n")
    assert wheels.download(str(requirements), str(tmp_path)) == []


def test_a_wheel_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as without a network
    requirements = tmp_path / "guest.txt"
    requirements.write_text(f"no-such-project-of-ours==1 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BuildError, match="cannot download the guest's wheels: ") as caught:
        wheels.download(str(requirements), str(tmp_path / "wheels"))
    assert "\n" not in str(caught.value)


def test_a_failure_is_one_line_and_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()  # where a directory is needed
    command = [sys.executable, BUILD, "--output", tmp_path / "out", "--cache", tmp_path / "cache"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    first = result.stderr.splitlines()[0]
    assert first.startswith("cannot build the guest image: ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_wrong_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contents, "PYTHON", "python3.10")
    assert cli.main(["--output", "/nowhere", "--cache", "/nowhere"]) == 1
    assert "python3.10 must build it" in capsys.readouterr().err
