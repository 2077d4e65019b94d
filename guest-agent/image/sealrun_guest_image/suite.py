"""A newer Debian suite (backports) from the apt sources that this host already has.

The suite's archive and its keyring are those of the entry that serves the host's own suite: no
archive is named here, and the host's apt configuration stays as it is.
"""

import os
import re
from typing import NamedTuple

from sealrun_guest_image.apt import Apt
from sealrun_guest_image.errors import BuildError

_ONE_LINE = re.compile(
    r"^deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>.+)$"
)


class Source(NamedTuple):
    """Where a suite comes from. `options`: the one-line form's, such as `signed-by=…`."""

    uri: str
    options: str


def apt_for(suite: str, directory: str, *, etc: str = "/etc") -> Apt:
    """An apt of its own in `directory` that knows only the host's `<codename>-<suite>`.

    Its indexes are fetched. Raises BuildError."""
    codename = _codename(os.path.join(etc, "os-release"))
    source = find(codename, os.path.join(etc, "apt"))
    lists = os.path.join(directory, "lists")
    os.makedirs(os.path.join(lists, "partial"), exist_ok=True)
    line = f"deb {source.options} {source.uri} {codename}-{suite} main\n"
    with open(os.path.join(directory, "sources.list"), "w", encoding="utf-8") as stream:
        stream.write(line)
    archive = Apt(
        (
            f"Dir::Etc::SourceList={os.path.abspath(directory)}/sources.list",
            "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::Lists={os.path.abspath(lists)}",
            f"Dir::Cache={os.path.abspath(directory)}",
        )
    )
    archive.update()
    return archive


def find(codename: str, directory: str) -> Source:
    """The entry under `directory` (as /etc/apt) that serves `codename`. Raises BuildError."""
    for path in _files(directory):
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
        sources = _deb822(text) if path.endswith(".sources") else _one_line(text)
        for source, suites, components in sources:
            if codename in suites and "main" in components:
                return source
    raise BuildError(
        f"cannot derive a newer suite: no apt source of this host serves {codename}",
        remedy="add Debian's own archive to the host's apt sources",
    )


_Found = tuple[Source, list[str], list[str]]


def _one_line(text: str) -> list[_Found]:
    found = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.strip())
        if match is not None:
            options = f"[{match['options'].strip()}]" if match["options"] else ""
            found.append((Source(match["uri"], options), [match["suite"]], match["parts"].split()))
    return found


def _deb822(text: str) -> list[_Found]:
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        joined = re.sub(r"\n[ \t]+", " ", "\n".join(lines))
        pairs = (line.partition(":") for line in joined.splitlines() if ":" in line)
        fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled") == "no":
            continue
        key = fields.get("signed-by", "")
        if " " in key:
            continue  # a key inside the entry has no one-line form
        source = Source(fields["uris"].split()[0], f"[signed-by={key}]" if key else "")
        found.append((source, fields["suites"].split(), fields.get("components", "").split()))
    return found


def _files(directory: str) -> list[str]:
    parts = os.path.join(directory, "sources.list.d")
    names = sorted(os.listdir(parts)) if os.path.isdir(parts) else []
    paths = [os.path.join(directory, "sources.list")]
    paths += [os.path.join(parts, name) for name in names if name.endswith((".list", ".sources"))]
    return [path for path in paths if os.path.isfile(path)]


def _codename(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as stream:
            match = re.search(r"^VERSION_CODENAME=\"?([a-z]+)", stream.read(), re.M)
    except OSError as error:
        raise BuildError(f"cannot read {path}: {error.strerror}") from error
    if match is None:
        raise BuildError(f"cannot derive a newer suite: {path} names no VERSION_CODENAME")
    return match[1]
