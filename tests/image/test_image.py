"""What is in the image, and what is not."""

import json
import os
import re
import stat
from pathlib import Path

from image.container import Image

ROOT = Path(__file__).parents[2]
# By their names as commands, with or without a version.
TOOLS = re.compile(r"(cc|gcc|g\+\+|c\+\+|cpp|clang|ld|as|make|go|rustc|cargo|pip|uv|uvx|easy_install|wheel)-?[\d.]*")
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n(.+?)\n-----END CERTIFICATE-----", re.DOTALL)


def test_image_says_how_it_is_run(image: Image) -> None:
    config = image.config
    assert config["User"] == "10001:10001"
    assert (config["Entrypoint"], config["Cmd"]) == (["famulus-server"], ["serve"])
    assert set(config["ExposedPorts"]) == {"7461/tcp", "7462/tcp", "9464/tcp"}
    assert set(config["Volumes"]) == {"/var/lib/famulus"}
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "famulus-server", "healthcheck"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", config["Labels"]["org.opencontainers.image.version"])


def test_image_has_nothing_to_build_or_install_with(image: Image) -> None:
    assert [path for path in image.paths() if os.access(path, os.X_OK) and _is_tool(path)] == []
    packages = {path.name for path in image.paths() if path.parent.name in {"site-packages", "dist-packages"}}
    assert "famulus_server" in packages
    assert packages.isdisjoint({"pip", "setuptools", "wheel", "uv", "pytest", "mypy"})
    assert [path for path in image.paths() if path.suffix == ".whl"] == []


def _is_tool(path: Path) -> bool:
    return path.is_file() and path.parent.name in {"bin", "sbin"} and TOOLS.fullmatch(path.name) is not None


def test_image_has_no_file_that_gives_rights_away(image: Image) -> None:
    for path in image.paths():
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            continue
        assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID) or path.is_dir(), path
        assert not found.st_mode & stat.S_IWOTH or found.st_mode & stat.S_ISVTX, path


def test_server_owns_its_data_directory_and_nothing_else(image: Image) -> None:
    uid, _ = image.owner
    assert [path for path in image.paths() if path.lstat().st_uid == uid] == [image.rootfs / "var/lib/famulus"]


def test_no_module_is_compiled_at_start(image: Image) -> None:
    folders = [image.rootfs / "opt/famulus", *image.rootfs.glob("usr/**/lib/python3.11/asyncio")]
    modules = [path for folder in folders for path in folder.rglob("*.py") if path.parent.name != "bin"]
    assert len(modules) > 1_000
    compiled = {path.name.partition(".cpython-")[0]: path for folder in folders for path in folder.rglob("*.pyc")}
    assert [path for path in modules if path.stem not in compiled] == []


def test_bill_of_materials_is_what_is_installed(image: Image) -> None:
    bill = json.loads(image.read("usr/share/famulus/famulus-server.cdx.json"))
    described = {
        _canonical(one["name"]): one["version"] for one in [bill["metadata"]["component"], *bill["components"]]
    }
    names = [path.stem for path in image.rootfs.glob("opt/famulus/lib/python3.*/site-packages/*.dist-info")]
    assert described == {_canonical(name): version for name, _, version in (one.partition("-") for one in names)}
    assert image.read("usr/share/famulus/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_only_the_embedded_variant_brings_servers_along(production: Image, embedded: Image) -> None:
    brought = [set(image.rootfs.glob("**/valkey-server")) for image in (production, embedded)]
    assert [len(found) for found in brought] == [0, 1]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_nothing_of_the_machine_that_built_it_stays(image: Image) -> None:
    public = {one for path in image.rootfs.glob("usr/share/ca-certificates/*/*.crt") for one in _certificates(path)}
    kept = {one for path in image.rootfs.rglob("*.crt") if path.is_file() for one in _certificates(path)}
    assert len(public) > 100
    assert kept == public
    settings = {"pip.conf", "ca.pem", "resolv.conf", "sources.list", "debian.sources", ".netrc"}
    assert [path for path in image.paths() if path.name in settings and path.lstat().st_size] == []
    assert not re.search(r"index-url|https?://", image.history)


def _certificates(path: Path) -> list[str]:
    return CERTIFICATE.findall(path.read_text(encoding="utf-8"))
