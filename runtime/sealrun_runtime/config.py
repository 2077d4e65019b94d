"""The operator's configuration: sealrun.toml in layers, each over the one before.

    the table's defaults < shipped sealrun.toml < /etc/sealrun/sealrun.toml
      < /etc/sealrun/sealrun.toml.d/*.toml (by name) < annotations that the table allows

Read by `create`, `run` and `config` only. A key that the table does not know is an error that names
the nearest one: a misspelt setting never passes for a default.
"""

import os
import textwrap
import tomllib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from sealrun_runtime import installation, named_file
from sealrun_runtime.bundle import explain
from sealrun_runtime.errors import ConfigError, InvalidRequest, SealrunError, cause
from sealrun_runtime.settings import Config, Setting, table

OPERATOR_FILE: Final = "/etc/sealrun/sealrun.toml"
DEFAULT: Final = "default"
_FILE_BYTES: Final = 1 << 20


class Origin(NamedTuple):
    """A value and who set it: `default`, a file's path, or an annotation's name."""

    value: object
    origin: str


_OURS: Final = "io.sealrun."
Layers = dict[str, Origin]
"""For each key of the table the value that holds."""


def files(operator_file: str = OPERATOR_FILE) -> list[str]:
    """The files that may exist, lowest layer first. Raises ConfigError."""
    drop_ins = f"{operator_file}.d"
    try:
        names = sorted(name for name in os.listdir(drop_ins) if name.endswith(".toml"))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise ConfigError(f"cannot read {drop_ins}: {cause(error)}") from error
    shipped = installation.shipped_settings()
    return [shipped, operator_file, *(os.path.join(drop_ins, name) for name in names)]


def resolve(paths: list[str], annotations: Mapping[str, str]) -> Layers:
    """Lay `paths` (missing ones are skipped) and then `annotations` over the defaults.

    Raises ConfigError for a file, InvalidRequest for an annotation."""
    settings = table()
    layers = {key: Origin(setting.default, DEFAULT) for key, setting in settings.items()}
    for path in paths:
        for key, value in _flatten(_read(path), ""):
            setting = _known(key, settings, path)
            layers[key] = Origin(_convert(value, setting, f"{path}: {key}", ConfigError), path)
    for key, setting in settings.items():
        if setting.annotation in annotations:
            text = annotations[setting.annotation]
            value = int(text) if text.isascii() and text.isdigit() else text
            where = f"annotation {setting.annotation}"
            layers[key] = Origin(_convert(value, setting, where, InvalidRequest), where)
    return layers


def check_annotations(annotations: Mapping[str, str], others: Collection[str]) -> None:
    """others: names that are no setting's. What is misspelt might be what protects something (init-data).
    Raises InvalidRequest."""
    known = {*others, *(row.annotation for row in table().values() if row.annotation)}
    for name in annotations:
        if name.startswith(_OURS) and name not in known:
            near = _nearest(name, known)
            raise InvalidRequest(
                f"unknown annotation {name}",
                remedy=f"did you mean {near[0]}?"
                if near
                else f"known are {', '.join(sorted(known))}",
            )


def build(layers: Layers) -> Config:
    """The frozen configuration of one container."""
    nested: dict[str, Any] = {}
    for key, (value, _) in layers.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return msgspec.convert(nested, Config)


def document(layers: Layers, *, origins: bool) -> str:
    """The settings as a sealrun.toml that can be read again; `origins` notes who set each value."""
    lines: list[str] = []
    section = ""
    for key, setting in table().items():
        value, origin = layers[key]
        head, _, name = key.rpartition(".")
        if head != section:
            section = head
            lines += [f"[{section}]", ""]
        bounds = f"; annotation {setting.annotation}" if setting.annotation else ""
        lines += textwrap.wrap(
            f"{setting.doc}{bounds}.", width=100, initial_indent="# ", subsequent_indent="# "
        )
        lines.append(f"{name} = {toml_value(value)}" + (f"  # {origin}" if origins else ""))
        lines.append("")
    return "\n".join(lines)


def shipped_document() -> str:
    """The content of config/sealrun.toml."""
    head = (
        "# The settings of sealrun with their defaults. Generated from the table in settings.py by\n"
        "# `sealrun config --defaults`. Do not edit it: put what differs into\n"
        f"# {OPERATOR_FILE}, or into a file of {OPERATOR_FILE}.d/.\n\n"
    )
    defaults = {key: Origin(row.default, DEFAULT) for key, row in table().items()}
    return head + document(defaults, origins=False)


def toml_value(value: object) -> str:
    """A value of the table as TOML; strings as JSON strings, which are TOML basic strings."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return msgspec.json.encode(value).decode()


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(named_file.read(path, _FILE_BYTES).decode())
    except OSError as error:
        # A link that leads nowhere is no file that was left away: somebody's settings do not hold.
        if isinstance(error, FileNotFoundError) and not os.path.islink(path):
            return {}
        raise ConfigError(f"cannot read {path}: {cause(error)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        text = str(error)
        raise ConfigError(f"cannot read {path}: {text[:1].lower()}{text[1:]}") from error


def _flatten(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _nearest(name: str, known: Collection[str], cutoff: float = 0.6) -> list[str]:
    """At most one."""
    from difflib import get_close_matches  # for errors only

    return get_close_matches(name, known, n=1, cutoff=cutoff)


def _known(key: str, settings: dict[str, Setting], path: str) -> Setting:
    if key in settings:
        return settings[key]
    near = _nearest(key, settings, cutoff=0.5)
    # A key in the wrong section, or in none, is found by its last part.
    near = near or [name for name in settings if name.rpartition(".")[2] == key.rpartition(".")[2]]
    raise ConfigError(
        f"{path}: unknown setting {key}",
        remedy=f"did you mean {near[0]}?" if near else "sealrun config shows all settings",
    )


def _convert(value: object, setting: Setting, where: str, error_type: type[SealrunError]) -> Any:
    try:
        return msgspec.convert(value, setting.kind)
    except msgspec.ValidationError as error:
        text = explain(error)
        if isinstance(value, str) and setting.choices:
            text = f"{value[:80]!r} is none of {', '.join(setting.choices)}"
        raise error_type(f"{where}: {text}") from error
