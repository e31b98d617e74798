"""Images: their keys, what mmdebstrap tells, and what killed builds leave."""

import msgspec
import pytest

from orchestrator.lab import apt, images, tree
from orchestrator.lab.images import Meter


@pytest.fixture
def told():
    return []


@pytest.fixture
def meter(told):
    return Meter("image", lambda message, fraction=None: told.append((message, round(fraction, 2))))


def test_stages_and_percentages_become_one_fraction(meter, told):
    for line in (
        "I: finding correct signed-by value...",
        "I: running apt-get update...",
        "I: downloading packages with apt...",
        "downloading:  50.00 [#####      ]",
        "I: installing remaining packages inside the chroot...",
        "             40.00",
        "I: success in 24.7 seconds",
    ):
        meter.read(line)
    assert told == [
        ("image: reading the package index", 0.0),
        ("image: downloading", 0.12),
        ("image: downloading", 0.21),
        ("image: installing the rest", 0.6),
        ("image: installing the rest", 0.74),
        ("image: done", 1.0),
    ]


def test_progress_never_goes_back(meter, told):
    meter.read("I: extracting archives...")
    for percent in ("90.00", "10.00", "100.00", "0.00", "250.00"):
        meter.read(f"extracting:   {percent} [#]")
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 0.42


@pytest.mark.parametrize("line", ["", "done", "E: nothing", "Get:1 50.00 kB", "I: no stage of ours", "12 packages"])
def test_lines_without_meaning_move_nothing(meter, told, line):
    meter.read(line)
    assert told == []


def test_the_key_names_the_content():
    before = images.key("debian-12")
    assert before == images.key("debian-12")
    assert before.startswith("debian-12-")
    assert before != images.key("debian-13")
    more = msgspec.structs.replace(images.CONTAINER, packages=(*images.PACKAGES, "tree"))
    assert before != images.key("debian-12", more)


def test_an_image_that_is_there_is_not_built(tmp_path, monkeypatch, meter, told):
    monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path))
    images.root(images.key("debian-12")).mkdir(parents=True)
    assert images.build("debian-12", meter) == images.key("debian-12")
    assert told == []


def test_half_an_image_is_removed_and_a_whole_one_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path))
    half, whole = tmp_path / "images" / "half", tmp_path / "images" / "whole"
    (half / "work" / "root" / "etc").mkdir(parents=True)
    (whole / "work").mkdir(parents=True)
    (whole / "root").mkdir()
    images.clean()
    assert sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*")) == [
        "whole",
        "whole/root",
    ]


def test_what_is_being_built_now_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path))
    work = tmp_path / "images" / "busy" / "work"
    work.mkdir(parents=True)
    with tree.hold(work.parent, wait=False):
        images.clean()
    assert work.is_dir()


TARGETS = """\
Debian|bookworm|http://mirror.example/debian/|main|Packages
Debian|bookworm|http://mirror.example/debian/|main|Packages
Debian|bookworm|http://mirror.example/debian/|contrib|Packages
Debian|bookworm|http://mirror.example/debian/|main|Translations
Debian|bookworm-backports|http://mirror.example/debian/|main|Packages
Debian|bookworm-security|http://mirror.example/security/|main|Packages
Node|bookworm|http://node.example/|main|Packages
broken
"""


def test_the_machines_own_mirror_serves_its_own_suite():
    assert apt.sources("bookworm", targets=TARGETS) == (
        "deb http://mirror.example/debian/ bookworm main",
        "deb http://mirror.example/security/ bookworm-security main",
    )


def test_the_machines_own_mirror_serves_another_suite_of_the_distribution():
    assert apt.sources("trixie", targets=TARGETS) == (
        "deb http://mirror.example/debian/ trixie main",
        "deb http://mirror.example/security/ trixie-security main",
    )


@pytest.mark.parametrize("targets", ["", "Ubuntu|noble|http://mirror.example/ubuntu/|main|Packages\n", "||||\n"])
def test_a_machine_of_another_distribution_leaves_the_choice_to_mmdebstrap(targets):
    assert apt.sources("bookworm", targets=targets) == ()


def test_hosts_go_to_the_archive_the_way_this_machine_goes():
    dump = """\
APT::Architecture "amd64";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::mirror.example "DIRECT";
Acquire::https::Verify-Peer "false";
Acquire::Check-Valid-Until "false";
Acquire::Retries "";
"""
    assert apt.options(dump).splitlines() == [
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::http::Proxy::mirror.example "DIRECT";',
        'Acquire::Check-Valid-Until "false";',
    ]
