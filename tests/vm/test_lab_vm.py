"""Labs of real virtual machines: images that are taken, machines that are killed, and nothing left of them."""

import contextlib
import functools
import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import LabError
from orchestrator.lab import disks, images, labs, processes, record, vm
from orchestrator.lab.spec import LabSpec
from tests.hosts.waiting import until

pytestmark = pytest.mark.vm

UP = """
import sys
from orchestrator.lab import labs
from orchestrator.lab.spec import LabSpec
spec = LabSpec(name="killed", provider="vm", image=sys.argv[1], memory_mib=256)
labs.up(spec, progress=lambda text, fraction=None: print(text, flush=True))
"""


def quiet(message, fraction=None):
    pass


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """State and cache of its own: these images are of some kilobytes."""
    with tempfile.TemporaryDirectory(prefix="v-") as folder:  # short: sockets are made below it
        monkeypatch.setenv("KVMFLEET_STATE_DIR", folder)
        monkeypatch.setenv("KVMFLEET_CACHE_DIR", str(tmp_path / "cache"))
        yield Path(folder)
        for name in record.names():
            labs.down(name, progress=quiet)


@pytest.fixture
def image(tmp_path):
    """A disk with nothing on it."""
    path = tmp_path / "web" / "blank.qcow2"
    path.parent.mkdir()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"], check=True)
    return path


@pytest.fixture
def address(image):
    """Where a web server of this machine has it."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(image.parent))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/blank.qcow2"
        server.shutdown()
        thread.join()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_image_from_an_address_is_kept_by_its_content(image, address):
    shares = []
    key = disks.take(address, sha256(image), lambda message, fraction=None: shares.append(fraction))
    assert disks.disk(key).read_bytes() == image.read_bytes()
    assert shares[-1] == 1.0
    image.unlink()
    assert disks.take(address, sha256(disks.disk(key)), quiet) == key, "the second time needs no server"


def test_a_wrong_checksum_keeps_nothing(image, address, tmp_path):
    with pytest.raises(LabError, match=f"SHA-256 {sha256(image)}, and {'0' * 64} was asked for"):
        disks.take(address, "0" * 64, quiet)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("wrong", ["", "../../x", "z" * 64])
def test_what_is_no_checksum_is_refused_even_when_it_begins_as_one_that_is_kept(image, address, wrong):
    whole = sha256(image)
    disks.take(address, whole.upper(), quiet)
    with pytest.raises(LabError, match="is no SHA-256"):
        disks.take(address, wrong or whole[:12], quiet)
    with pytest.raises(LabError, match="was asked for"):
        disks.take(address, whole[:12] + "0" * 52, quiet)


def test_an_address_without_a_checksum_is_refused(address):
    with pytest.raises(LabError, match="needs --sha256"):
        disks.take(address, "", quiet)


def test_an_address_that_has_nothing_or_nobody_is_named(address):
    for wrong, words in ((address + "x", "404"), ("http://127.0.0.1:9/x.qcow2", "Connection refused")):
        with pytest.raises(LabError, match=words) as caught:
            disks.take(wrong, "0" * 64, quiet)
        assert wrong in caught.value.message


def test_a_file_that_is_no_image_or_not_there_is_refused(tmp_path):
    with pytest.raises(LabError, match="No such file"):
        disks.take(str(tmp_path / "nowhere.qcow2"), "", quiet)
    vdi = tmp_path / "other.vdi"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", vdi, "1M"], check=True)
    with pytest.raises(LabError, match="in the format vdi") as caught:
        disks.take(str(vdi), "", quiet)
    assert f"qemu-img convert -O qcow2 {vdi} " in caught.value.hint


def test_a_file_that_is_any_file_is_refused(tmp_path):
    """QEMU takes whatever it does not know for a raw disk."""
    letter = tmp_path / "letter.txt"
    letter.write_text("no disk\n" * 4096)
    with pytest.raises(LabError, match="does not begin with a boot sector"):
        disks.take(str(letter), "", quiet)
    sector = tmp_path / "sector.img"
    sector.write_bytes(b"\x55\xaa".rjust(512, b"\0"))
    disks.take(str(sector), "", quiet)


def test_an_image_that_reads_a_file_of_this_machine_is_refused(tmp_path):
    greedy = tmp_path / "greedy.qcow2"
    (tmp_path / "secret").write_bytes(bytes(512))
    backing = ["-b", str(tmp_path / "secret"), "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, greedy], check=True)
    with pytest.raises(LabError, match="refers to another file"):
        disks.take(str(greedy), "", quiet)
    assert not list((tmp_path / "cache").rglob("disk"))


def blank(image, **wish):
    return LabSpec(name="blank", provider="vm", image=str(image), memory_mib=256, **wish)


def test_a_machine_that_never_answers_is_told_and_goes_without_a_trace(image, state, tmp_path, monkeypatch):
    monkeypatch.setattr(vm.Vm, "patience_s", lambda self, lab: 8.0)
    with pytest.raises(LabError, match=r"blank-1 does not answer at 127\.0\.0\.1:22\d\d\d after 8 s") as caught:
        labs.up(blank(image), progress=quiet)
    assert "console" in caught.value.hint
    lab = labs.find("blank")
    assert running("blank")
    shutil.rmtree(tmp_path / "cache")
    subprocess.run(["qemu-img", "check", "-q", "-U", lab.host_folder(lab.hosts[0]) / "disk.qcow2"], check=True)
    whole = subprocess.run(
        ["qemu-img", "info", "-U", "--backing-chain", lab.host_folder(lab.hosts[0]) / "disk.qcow2"], capture_output=True
    )
    assert whole.returncode == 0, "a host needs no cache"
    labs.down("blank", progress=quiet)
    assert not running("blank")
    assert not (state / "labs").exists()


def test_a_machine_that_dies_is_told_with_the_end_of_its_console(image, monkeypatch):
    monkeypatch.setattr(labs, "_APPEAR_LIMIT_S", 0.5)

    def kill(message, fraction=None):
        if message.endswith("starting"):
            threading.Thread(target=end).start()

    def end():
        until(lambda: detached("blank"))
        lab = labs.find("blank")
        lab.console(lab.hosts[0]).write_text("Kernel panic - not syncing\n")
        for process in processes.find(vm.PROGRAM, vm._control(lab, lab.hosts[0])):
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(LabError, match="blank-1 ended while it started") as caught:
        labs.up(blank(image), progress=kill)
    assert "Kernel panic" in caught.value.hint


def test_a_killed_up_leaves_its_machine_to_the_next_command(image, state):
    with subprocess.Popen([sys.executable, "-c", UP, str(image)], stdout=subprocess.PIPE, text=True) as up:
        for line in up.stdout:
            if line.strip().endswith("starting"):
                break
        until(lambda: detached("killed"))
        up.kill()
    time.sleep(0.5)  # what ends with its maker is gone by then
    assert running("killed"), "a machine is not its maker's child"
    labs.down("killed", progress=quiet)
    assert not running("killed")
    assert not (state / "labs").exists()


def running(name):
    return mentioning(f"{record.folder_of(name)}/hosts/")


def detached(name):
    """Whether a machine runs and nothing works on it any more in our session, as what makes its disk does, and the QEMU
    that it forks from: it ends when that one cannot hear any more that all went well.
    """
    with contextlib.suppress(ProcessLookupError):
        sessions = {os.getsid(int(pid)) for pid in running(name)}
        return bool(sessions) and os.getsid(0) not in sessions
    return False


def mentioning(text):
    """Processes with this in their arguments."""
    return [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if text.encode() in content(path)]


def content(path):
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def test_a_killed_build_leaves_no_process_and_no_disk(tmp_path):
    build = "from orchestrator.lab import disks; disks.build('debian-12', lambda *a: print(a, flush=True))"
    with subprocess.Popen([sys.executable, "-c", build], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "extracting" in line:
                break
        process.kill()
    until(lambda: not mentioning(str(tmp_path)))
    images.clean()
    assert not list((tmp_path / "cache").rglob("*.tar"))
