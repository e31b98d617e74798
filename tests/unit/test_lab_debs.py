"""Packages taken from hosts that are not trusted."""

import hashlib
import os

import pytest

from orchestrator.lab import debs

NAME = "tree_2.1.0-1_amd64.deb"
CONTENT = b"!<arch>\npackage"


@pytest.fixture
def image(tmp_path):
    """An image whose index knows one package, and one with an epoch."""
    lists = tmp_path / "image" / debs.LISTS
    lists.mkdir(parents=True)
    digest = hashlib.sha256(CONTENT).hexdigest()
    stanzas = [
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nDescription: Package: x\nSize: {len(CONTENT)}\n"
        f"SHA256: {digest}\n"
        for name, version in (("tree", "2.1.0-1"), ("qemu-utils", "1:7.2+dfsg-7"), ("other", "1"))
    ]
    (lists / "mirror_dists_bookworm_main_binary-amd64_Packages").write_text("\n".join(stanzas))
    return tmp_path / "image"


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "host" / debs.ARCHIVES
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def harvest(tmp_path, image, archives):
    return lambda: debs.harvest(tmp_path / "host", tmp_path / "cache", image)


def test_a_package_that_the_index_knows_is_kept(harvest, archives, tmp_path):
    (archives / NAME).write_bytes(CONTENT)
    assert harvest() == (NAME,)
    assert (tmp_path / "cache" / NAME).read_bytes() == CONTENT


def test_a_package_with_an_epoch_is_known_by_the_name_that_apt_gives_it(harvest, archives):
    (archives / "qemu-utils_1%3a7.2+dfsg-7_amd64.deb").write_bytes(CONTENT)
    assert harvest() == ("qemu-utils_1%3a7.2+dfsg-7_amd64.deb",)


def test_a_package_is_taken_once(harvest, archives):
    (archives / NAME).write_bytes(CONTENT)
    harvest()
    assert harvest() == ()


def test_a_forged_package_of_the_right_size_is_left(harvest, archives, tmp_path):
    (archives / NAME).write_bytes(CONTENT[::-1])
    assert harvest() == ()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("content", [CONTENT + b"more", CONTENT[:-1], b""])
def test_a_package_of_the_wrong_size_is_left(harvest, archives, content):
    (archives / NAME).write_bytes(content)
    assert harvest() == ()


@pytest.mark.parametrize("name", ["unknown_1_amd64.deb", "tree_2.1.0-2_amd64.deb", "lock", ".deb", "a b_1_all.deb"])
def test_a_file_that_the_index_does_not_know_is_left(harvest, archives, name):
    (archives / name).write_bytes(CONTENT)
    assert harvest() == ()


def test_a_link_to_a_file_of_this_machine_is_not_followed(harvest, archives, tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    (archives / NAME).symlink_to(tmp_path / "secret")
    assert harvest() == ()


@pytest.mark.parametrize("level", range(4))
def test_a_link_on_the_way_is_not_followed(harvest, archives, tmp_path, level):
    elsewhere = tmp_path / "elsewhere"
    (archives / NAME).write_bytes(CONTENT)
    replaced = [archives, *archives.parents][level]
    replaced.rename(elsewhere)
    replaced.symlink_to(elsewhere)
    assert harvest() == ()


def test_a_pipe_does_not_hang_the_harvest(harvest, archives):
    os.mkfifo(archives / NAME)
    assert harvest() == ()


def test_a_folder_under_the_name_of_a_package_is_left(harvest, archives):
    (archives / NAME).mkdir()
    assert harvest() == ()


def test_a_host_without_a_cache_gives_nothing(harvest, archives):
    archives.rmdir()
    assert harvest() == ()


def test_kept_packages_are_offered_to_a_new_host(harvest, archives, tmp_path):
    (archives / NAME).write_bytes(CONTENT)
    harvest()
    (tmp_path / "cache" / ".half_1_all.deb.new").write_bytes(b"x")
    fresh = tmp_path / "fresh" / debs.ARCHIVES
    fresh.mkdir(parents=True)
    debs.offer(tmp_path / "cache", tmp_path / "fresh")
    assert [path.name for path in fresh.iterdir()] == [NAME]
