"""The settings: one table, layers over it, and errors that say where."""

import re
import tomllib
from pathlib import Path

import pytest
from sealrun_runtime import config
from sealrun_runtime.errors import ConfigError, InvalidRequest
from sealrun_runtime.settings import Config, table

ROOT = Path(__file__).parents[3]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_the_shipped_file_is_the_table() -> None:
    assert (ROOT / "config/sealrun.toml").read_text() == config.shipped_document()


def test_the_shipped_file_says_the_defaults() -> None:
    layers = config.resolve([str(ROOT / "config/sealrun.toml")], {})
    assert config.build(layers) == Config()


def test_each_setting_is_documented() -> None:
    for setting in table().values():
        assert setting.doc, setting.key
        assert not setting.doc.endswith("."), setting.key


def test_later_layers_win_and_origins_are_known(tmp_path: Path) -> None:
    first = write(tmp_path / "a.toml", "[vm]\ncpus = 2\nmemory = 512\n")
    second = write(tmp_path / "b.toml", "tee = 'none'\n[vm]\ncpus = 3\n")
    missing = str(tmp_path / "missing.toml")
    layers = config.resolve([first, missing, second], {"io.sealrun.memory": "2048", "other": "x"})
    built = config.build(layers)
    assert (built.vm.cpus, built.vm.memory, built.tee) == (3, 2048, "none")
    assert layers["vm.cpus"].origin == second
    assert layers["vm.memory"].origin == "annotation io.sealrun.memory"
    assert layers["vm.driver"].origin == "default"


def test_what_is_shown_can_be_read_again(tmp_path: Path) -> None:
    text = """tee = "none"
[relay]
endpoints = ["broker.example:8080", "[::1]:80"]
[vm]
qemu = "/opt/a \\"b\\"/qemu"
"""
    layers = config.resolve([write(tmp_path / "a.toml", text)], {})
    shown = config.document(layers, origins=True)
    assert config.build(config.resolve([write(tmp_path / "b.toml", shown)], {})) == config.build(
        layers
    )
    assert tomllib.loads(shown)["vm"]["qemu"] == '/opt/a "b"/qemu'


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("[vm]\nmemroy = 1", "did you mean vm.memory?"),
        ("memory = 512", "did you mean vm.memory?"),
        ("[vmm]\ndriver = 'qemu'", "did you mean vm.driver?"),
        ("[vm.cpus]\nx = 1", "did you mean vm.cpus?"),
        ("zzzzzzzz = 1", "sealrun config shows all settings"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, text: str, remedy: str) -> None:
    path = write(tmp_path / "a.toml", text)
    with pytest.raises(ConfigError) as caught:
        config.resolve([path], {})
    assert caught.value.text.startswith(f"{path}: unknown setting ")
    assert caught.value.remedy == remedy


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[vm]\ncpus = 0", "vm.cpus"),
        ("[vm]\ncpus = true", "vm.cpus"),
        ("[vm]\nmemory = '1G'", "vm.memory"),
        ("[vm]\ndriver = 'xen'", "vm.driver: 'xen' is none of auto, cloud-hypervisor, qemu"),
        ("[vm]\nqemu = 'qemu'", "vm.qemu"),
        ("vm = 3", "vm"),
        ("[relay]\nendpoints = ['broker']", "relay.endpoints"),
        ("[relay]\nendpoints = ['http://broker:80']", "relay.endpoints"),
        ("[image]\ninsecure_registries = ['a/b']", "image.insecure_registries"),
    ],
)
def test_a_wrong_value_names_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = write(tmp_path / "a.toml", text)
    with pytest.raises(ConfigError) as caught:
        config.resolve([path], {})
    assert path in caught.value.text
    assert key in caught.value.text


@pytest.mark.parametrize("text", ["[vm", "\x00", "a = 1\na = 2", b"\xff\xfe".decode("latin1")])
def test_what_is_no_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError, match="cannot read"):
        config.resolve([str(path)], {})


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    assert config.resolve([str(tmp_path / "none.toml")], {})
    (tmp_path / "a.toml").symlink_to(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"cannot read .*/a\.toml: it does not exist"):
        config.resolve([str(tmp_path / "a.toml")], {})


@pytest.mark.parametrize("value", ["", "0", "-1", "1e3", "many", "99999999999", "٣"])
def test_annotations_have_the_bounds_of_their_setting(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"annotation io\.sealrun\.memory: "):
        config.resolve([], {"io.sealrun.memory": value})


def test_only_the_table_decides_what_an_annotation_may_set() -> None:
    layers = config.resolve([], {"io.sealrun.vm.qemu": "/evil", "vm.qemu": "/evil"})
    assert config.build(layers) == Config()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("io.sealrun.init_data", "did you mean io.sealrun.init-data?"),
        ("io.sealrun.memroy", "did you mean io.sealrun.memory?"),
        ("io.sealrun.quite-another-thing-of-yesterday", "known are io.sealrun.cpus, "),
    ],
)
def test_a_misspelt_annotation_is_not_passed_over(name: str, remedy: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"unknown annotation {name}")) as caught:
        config.check_annotations({"other": "", name: "1"}, ["io.sealrun.init-data"])
    assert caught.value.remedy.startswith(remedy)
    config.check_annotations(
        {"io.sealrunx": "", "io.sealrun.init-data": ""}, ["io.sealrun.init-data"]
    )


def test_the_layers_in_order(tmp_path: Path) -> None:
    write(tmp_path / "sealrun.toml.d/20-b.toml", "")
    write(tmp_path / "sealrun.toml.d/10-a.toml", "")
    write(tmp_path / "sealrun.toml.d/ignored.txt", "")
    found = config.files(str(tmp_path / "sealrun.toml"))
    names = [Path(path).name for path in found[1:]]
    assert names == ["sealrun.toml", "10-a.toml", "20-b.toml"]
