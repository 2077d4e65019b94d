"""Debian packages by apt: resolve names, download into a cache, read what is inside.

Nothing is installed on the host. apt checks the archive's signatures; each file is checked again
against the hash that apt's signed index gives, whenever it is taken from the cache.
"""

import hashlib
import os
import re
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import unquote

from sealrun_guest_image.errors import BuildError
from sealrun_guest_image.tree import Directory, Entry, File, Link

_URI_LINE = re.compile(
    r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$"
)
_DEPENDS = re.compile(r"^ (?P<or>[ |])(?:Pre)?Depends: (?P<name>\S+)$")
_NO_EXTRAS = ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
_NETWORK = "check the network and the host's apt sources"


class Package(NamedTuple):
    """One resolved package file."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


class Apt:
    """The host's apt, with `options` (`-o` values) for a private configuration."""

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        # The sandbox user could not write into a cache directory that belongs to root.
        sandboxed = ("APT::Sandbox::User=root", *options)
        self._options = [part for option in sandboxed for part in ("-o", option)]

    def update(self) -> None:
        """Fetch the indexes. Raises BuildError."""
        self._run("apt-get", "update", "--quiet", "--error-on=any", what="update apt's indexes")

    def dependency(self, name: str, starts_with: str) -> str:
        """The one direct dependency of `name` that starts so. Raises BuildError."""
        pattern = re.compile(rf"^\s+Depends: ({re.escape(starts_with)}\S+)$", re.M)
        found = pattern.search(self._depends(name))
        if found is None:
            raise BuildError(
                f"cannot resolve package {name}: it depends on nothing called {starts_with}…",
                remedy=_NETWORK,
            )
        return found[1]

    def libraries(self, names: Iterable[str]) -> set[str]:
        """The library packages (`lib…`, `zlib…`) that `names` need, directly or by one another.

        Of alternatives the first is taken."""
        needs = _needs(self._depends("--recurse", *names))
        found: set[str] = set()
        pending = list(names)
        while pending:
            for need in needs.get(pending.pop(), ()):
                if need.startswith(("lib", "zlib")) and need not in found:
                    found.add(need)
                    pending.append(need)
        return found

    def resolve(self, names: Iterable[str]) -> list[Package]:
        """The candidate file of each package, sorted by name. Raises BuildError."""
        wanted = sorted(set(names))
        output = self._run(
            "apt-get", "download", "--print-uris", *wanted, what="resolve the guest's packages"
        )
        packages = []
        for line in output.splitlines():
            match = _URI_LINE.match(line)
            if match is not None:
                name, version, _ = unquote(match["file"]).removesuffix(".deb").split("_")
                package = Package(name, version, match["file"], int(match["size"]), match["sha256"])
                packages.append(package)
        missing = set(wanted) - {package.name for package in packages}
        if missing:
            raise BuildError(f"cannot find the package {min(missing)}", remedy=_NETWORK)
        return sorted(packages)

    def download(self, packages: list[Package], directory: str) -> int:
        """Bring what is missing into `directory`; returns the bytes that were fetched.

        Raises BuildError."""
        missing = [package for package in packages if not _present(package, directory)]
        if not missing:
            return 0
        os.makedirs(directory, exist_ok=True)
        names = [f"{package.name}={package.version}" for package in missing]
        self._run("apt-get", "download", "--quiet", *names, what="download packages", cwd=directory)
        for package in missing:
            if not _present(package, directory):
                raise BuildError(f"cannot use {package.file}: it is not what apt's index describes")
        return sum(package.size for package in missing)

    def _depends(self, *arguments: str) -> str:
        extras = [f"--no-{kind}" for kind in _NO_EXTRAS]
        return self._run("apt-cache", "depends", *extras, *arguments, what="resolve packages")

    def _run(self, program: str, *arguments: str, what: str, cwd: str | None = None) -> str:
        command = [program, *self._options, *arguments]
        environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            result = subprocess.run(
                command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise BuildError(f"cannot run {program}: {error.strerror}") from error
        if result.returncode != 0:
            raise BuildError(f"cannot {what}: {_first_error(result.stderr)}", remedy=_NETWORK)
        return result.stdout


def contents(package: Package, directory: str) -> Iterator[tuple[str, Entry]]:
    """What `package` would install, with the merged `/usr` of the running Debian.

    Raises BuildError where dpkg-deb cannot read the file."""
    command = ["dpkg-deb", "--fsys-tarfile", os.path.join(directory, package.file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                path = _merged(member.name.removeprefix("./").rstrip("/"))
                if member.isfile():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield path, File(stream.read(), member.mode & 0o755, int(member.mtime))
                elif member.issym():
                    yield path, Link(_merged_target(member.linkname))
                elif member.islnk():
                    yield path, Link("/" + _merged(member.linkname.removeprefix("./")))
                elif member.isdir() and path not in {"", "."}:
                    yield path, Directory()
        process.stdout.read()  # padding behind the archive: without it dpkg-deb sees a closed pipe
    if process.returncode != 0:
        raise BuildError(f"cannot read {package.file}: dpkg-deb failed")


def _needs(output: str) -> dict[str, list[str]]:
    """What `apt-cache depends` printed: each package, and the packages it depends on.

    A line ` |Depends: x` has its alternatives on the lines behind it, a name in `<>` is virtual and
    has its providers behind it, further indented."""
    needs: dict[str, list[str]] = {}
    package, alternative = "", False
    for line in output.splitlines():
        if not line.startswith(" "):
            package, alternative = line, False
            needs[package] = []
            continue
        match = _DEPENDS.match(line)
        if match is not None:
            if not alternative:
                needs[package].append(match["name"])
            alternative = match["or"] == "|"
    return needs


def _merged(path: str) -> str:
    top = path.split("/", 1)[0]
    return f"usr/{path}" if top in {"bin", "sbin", "lib", "lib64"} else path


def _merged_target(target: str) -> str:
    return "/" + _merged(target[1:]) if target.startswith("/") else target


def _present(package: Package, directory: str) -> bool:
    path = os.path.join(directory, package.file)
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    return (errors or lines or ["it gave no reason"])[0]
