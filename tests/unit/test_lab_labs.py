"""The story of a lab, told with a provider that makes nothing but files."""

import contextlib
import errno
import stat

import pytest

from orchestrator.errors import LabError, LockedError
from orchestrator.lab import labs, record, tree
from orchestrator.lab.accelerator import Accelerator
from orchestrator.lab.spec import LabSpec


class Paper:
    """A provider whose hosts are files; `stumble` raises at the named step, once."""

    limits = "Hosts of paper cannot do anything."
    most, patience = 100, 120.0

    def __init__(self):
        self.done, self.stumble_at, self.running, self.network, self.missing = [], "", set(), False, ""
        self.stumble_over: BaseException = KeyboardInterrupt()

    def _step(self, *words):
        self.done.append(" ".join(words))
        if self.done[-1] == self.stumble_at:
            self.stumble_at = ""
            raise self.stumble_over

    def require(self, folder):
        if self.missing:
            raise LabError(self.missing)

    def fit(self, folder, spec, lab, waiting):
        if waiting > self.most:
            raise LabError(f"room for {self.most}, not for {waiting}")

    def shaped(self, lab, spec):
        return lab

    def settled(self, lab, host):
        return host

    def patience_s(self, lab):
        return self.patience

    def alone(self):
        return contextlib.nullcontext()

    def image(self, system, spec, progress):
        self._step("image", system)
        return f"{system}-key"

    def connect(self, lab, progress):
        assert labs.find(lab.name) == lab, "the record comes first"
        self.network = True
        self._step("connect")

    def create(self, lab, host, folder):
        (folder / "root").mkdir()
        (folder / "key").mkdir()
        (folder / "key" / "id_ed25519.pub").write_text("ssh-ed25519 AAAA x\n")
        self._step("create", host.name)

    def start(self, lab, host):
        self.running.add(host.name)
        self._step("start", host.name)

    def started_at_s(self, lab, host):
        return 1.0 if host.name in self.running else None

    def stop(self, lab, hosts, *, grace_s):
        self.running -= {host.name for host in hosts}
        self._step("stop")

    def traces(self, lab):
        return tuple(sorted(self.running))

    def clean(self, lab):
        self.network = False
        self._step("clean")

    def harvest(self, lab):
        return 0


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """The provider, and an ssh that answers at once."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "ssh").write_text("#!/bin/sh\ncat > /dev/null\n")
    (bin_folder / "ssh").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=":")
    provider = Paper()
    monkeypatch.setitem(labs.PROVIDERS, "paper", provider)
    return provider


def quiet(message, fraction=None):
    pass


def up(**wish):
    return labs.up(LabSpec(provider="paper", **wish), progress=quiet)


def test_a_full_disk_is_said_and_up_goes_on_when_there_is_room(paper):
    paper.stumble_at, paper.stumble_over = "create lab-1", OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(LabError, match=r"The lab in .*/lab: No space left on device\.") as caught:
        up()
    assert "df -h" in caught.value.hint
    up()
    assert paper.running == {"lab-1", "lab-2"}


def test_a_new_lab_is_made_in_order_with_one_image_a_system(paper):
    up(hosts=3)
    assert paper.done == [
        "connect",
        "image debian-12",
        "image debian-13",
        "create lab-1",
        "create lab-2",
        "create lab-3",
        "start lab-1",
        "start lab-2",
        "start lab-3",
    ]


def test_up_again_makes_and_starts_nothing(paper):
    first = up()
    paper.done.clear()
    assert up() == first
    assert paper.done == ["connect"]


def test_up_starts_a_stopped_host_and_builds_nothing(paper):
    up()
    paper.running.remove("lab-2")
    paper.done.clear()
    up()
    assert paper.done == ["connect", "start lab-2"]


def test_up_adds_hosts_and_keeps_those_that_are_there(paper):
    first = up(hosts=1)
    more = up(hosts=2)
    assert more.hosts[:1] == first.hosts
    assert [host.name for host in more.hosts] == ["lab-1", "lab-2"]


STEPS = ["connect", "image debian-12", "create lab-1", "create lab-2", "start lab-1", "start lab-2"]


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_up_is_continued(paper, step):
    paper.stumble_at = step
    with pytest.raises(KeyboardInterrupt):
        up()
    up()
    assert [host.state for host in labs.status("lab").hosts] == ["running", "running"]
    assert not list(labs.find("lab").folder.rglob("*.partial"))


def left(state):
    """What is not kvmfleet's own: the file in which hosts are locked serves every lab and every run."""
    return [path for path in state.rglob("*") if "locks" not in path.relative_to(state).parts]


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_up_is_taken_down_whole(paper, step, tmp_path):
    paper.stumble_at = step
    with pytest.raises(KeyboardInterrupt):
        up()
    labs.down("lab", progress=quiet)
    assert left(tmp_path / "state") == []
    assert (paper.running, paper.network) == (set(), False)


@pytest.mark.parametrize("step", ["stop", "clean"])
def test_an_interrupted_down_is_continued(paper, step, tmp_path):
    up()
    paper.stumble_at = step
    with pytest.raises(KeyboardInterrupt):
        labs.down("lab", progress=quiet)
    labs.down("lab", progress=quiet)
    assert left(tmp_path / "state") == []


def test_a_folder_without_a_record_is_removed_too(paper, tmp_path):
    (tmp_path / "state" / "labs" / "lab").mkdir(parents=True)
    assert labs.down("lab", progress=quiet) == (f"folder {tmp_path}/state/labs/lab",)
    assert left(tmp_path / "state") == []


def test_a_dry_run_says_the_same_and_does_nothing(paper):
    up()
    paper.done.clear()
    told = labs.down("lab", dry_run=True, progress=quiet)
    assert paper.done == []
    assert told == labs.down("lab", progress=quiet)


def test_down_of_one_lab_leaves_the_other(paper):
    up(name="one", hosts=1)
    two = up(name="two", hosts=1)
    labs.down("one", progress=quiet)
    assert record.names() == ("two",)
    assert labs.find("two") == two


def test_two_labs_have_different_subnets(paper):
    assert up(name="one").subnet != up(name="two").subnet


def test_an_unknown_lab_is_an_error_that_names_the_known_ones(paper):
    up(name="one")
    for call in (labs.status, labs.find, lambda name: labs.down(name, progress=quiet)):
        with pytest.raises(LabError, match="There is no lab two") as caught:
            call("two")
        assert "one" in caught.value.hint


def test_labs_that_cannot_be_read_are_not_called_missing(paper, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/labs").symlink_to("labs")  # a loop stops root, too
    for call in (labs.lab_of, labs.find):
        with pytest.raises(LabError, match=r"labs.*: Too many levels of symbolic links") as caught:
            call("lab-1")
        assert "the user who made it" in caught.value.hint


def test_a_machine_that_cannot_run_a_lab_is_left_as_it_was(paper, tmp_path):
    paper.missing = "no"
    with pytest.raises(LabError, match="no"):
        up()
    assert not (tmp_path / "state").exists()


def test_hosts_that_do_not_fit_leave_no_trace_and_those_that_run_are_not_counted(paper, tmp_path):
    paper.most = 1
    with pytest.raises(LabError, match="not for 2"):
        up()
    assert not (tmp_path / "state").exists()
    up(hosts=1)
    up(hosts=2)


def test_a_senseless_wish_leaves_no_trace(paper, tmp_path):
    with pytest.raises(LabError):
        up(systems=("beos",))
    assert not (tmp_path / "state").exists()


def test_an_unknown_provider_is_refused(paper):
    with pytest.raises(LabError, match="no provider 'cloud'"):
        labs.up(LabSpec(provider="cloud"), progress=quiet)


def test_a_lab_keeps_its_provider(paper, monkeypatch):
    up()
    monkeypatch.setitem(labs.PROVIDERS, "other", paper)
    with pytest.raises(LabError, match="is of provider paper"):
        labs.up(LabSpec(provider="other"), progress=quiet)


def test_a_lab_that_someone_else_changes_is_left_to_them(paper):
    lab = up()
    for call in (up, lambda: labs.down("lab", progress=quiet)):
        with tree.hold(lab.folder, wait=False), pytest.raises(LockedError):
            call()


def test_a_host_that_ends_while_it_starts_is_shown_with_its_console(paper, tmp_path, monkeypatch):
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    monkeypatch.setattr(labs, "_APPEAR_LIMIT_S", 0.0)
    started = paper.start

    def dies(lab, host):
        started(lab, host)
        lab.console(host).write_text("\x1b[1mFailed to mount /sys\n")
        paper.running.clear()

    paper.start = dies
    with pytest.raises(LabError, match="lab-1 ended while it started") as caught:
        up(hosts=1)
    assert caught.value.hint == "Failed to mount /sys"


def test_a_host_that_never_answers_is_shown_with_the_reason(paper, tmp_path):
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\necho Permission denied >&2; exit 255\n")
    paper.patience = 0.1
    with pytest.raises(LabError, match=r"does not answer at .*Permission denied") as caught:
        up(hosts=1)
    assert "wrote nothing" in caught.value.hint


def test_ssh_goes_through_the_labs_configuration(paper):
    lab = up()
    assert labs.ssh_argv("lab", "lab-1", ("uptime",)) == ["ssh", "-F", str(lab.ssh_config), "lab-1", "uptime"]


def test_ssh_to_a_stopped_host_says_how_to_start_it(paper):
    up()
    paper.running.clear()
    with pytest.raises(LabError, match="lab-1 is not running") as caught:
        labs.ssh_argv("lab", "lab-1")
    assert "lab up lab" in caught.value.hint


def test_status_tells_running_stopped_and_absent_apart(paper):
    paper.stumble_at = "create lab-3"
    with pytest.raises(KeyboardInterrupt):
        up(hosts=3)
    paper.running.add("lab-1")
    status = labs.status("lab")
    assert [host.state for host in status.hosts] == ["running", "stopped", "absent"]
    assert status.hosts[0].uptime_s > 0
    assert status.hosts[1].uptime_s is None
    assert status.limits == Paper.limits


def rebooting(tmp_path, *answers):
    """An ssh that tells these boots, one a call and the last for good; "" does not answer. Calls are written down."""
    (tmp_path / "answers").write_text("".join(f"{answer}\n" for answer in answers))
    (tmp_path / "bin" / "ssh").write_text(
        f"""#!/bin/sh
cat > /dev/null
for last; do :; done
echo "$last" >> {tmp_path}/asked
read -r answer < {tmp_path}/answers
[ "$(wc -l < {tmp_path}/answers)" -eq 1 ] || sed -i 1d {tmp_path}/answers
[ -n "$answer" ] || exit 255
echo "$answer"
"""
    )


def test_a_reboot_is_over_when_another_boot_answers(paper, tmp_path):
    up()
    paper.done.clear()
    rebooting(tmp_path, "one", "one", "one", "", "two")
    labs.reboot("lab", "lab-1", progress=quiet)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1] == "sudo -n systemctl reboot"
    assert len(asked) == 5
    assert paper.done == []


def test_only_a_host_that_starts_is_tried_again_when_it_takes_a_connection_slowly(paper, tmp_path):
    """A reboot that is not heard is none, and ssh ends as it does when the connection goes down with the host."""
    (tmp_path / "bin" / "ssh").write_text(f'#!/bin/sh\ncat > /dev/null; echo "$@" >> {tmp_path}/asked\n')
    lab = up(hosts=1)
    labs.ask(lab, lab.hosts[0], "true", timeout_s=77)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.partition("ConnectTimeout=")[2].split()[0] for line in asked] == ["5", "77"]


def test_a_host_has_not_ended_while_it_is_between_two_boots(paper, tmp_path, monkeypatch):
    """Then no process of it is there, for longer on a machine that is busy."""
    monkeypatch.setattr(labs, "_APPEAR_LIMIT_S", 0.0)
    monkeypatch.setattr(labs, "_PROBE_PAUSE_S", 0.0)
    up()
    rebooting(tmp_path, "one", "one", "", "", "", "", "two")
    looks = iter([1.0, 1.0, None, None, 1.0, 1.0])  # the first one is before the reboot
    paper.started_at_s = lambda lab, host: next(looks)
    labs.reboot("lab", "lab-1", progress=quiet)
    assert list(looks) == [1.0]


def test_a_host_that_does_not_obey_is_stopped_and_started(paper, tmp_path):
    up()
    paper.done.clear()
    rebooting(tmp_path, "", "two")
    labs.reboot("lab", "lab-1", progress=quiet)
    assert paper.done == ["stop", "start lab-1"]


def test_a_stopped_host_is_not_rebooted(paper):
    up()
    paper.running.clear()
    with pytest.raises(LabError, match="lab-1 is not running"):
        labs.reboot("lab", "lab-1", progress=quiet)


def test_the_console_is_shown_without_a_terminals_control_sequences(paper):
    lab = up()
    lab.host_folder(lab.hosts[0]).mkdir(parents=True, exist_ok=True)
    lab.console(lab.hosts[0]).write_bytes(b"\x1b[1mlogin:\x1b[0m\r\nroot")
    assert list(labs.console("lab", "lab-1")) == ["login:\n", "root"]


def test_a_host_that_never_started_has_no_console(paper):
    up()
    with pytest.raises(LabError, match="has not been started"):
        list(labs.console("lab", "lab-1"))


@pytest.mark.parametrize(
    ("kvm", "root", "provider"),
    [("kvm", True, "vm"), ("kvm", False, "vm"), ("tcg", True, "container"), ("tcg", False, "vm")],
)
def test_a_lab_is_of_what_this_machine_does_best_and_says_why(kvm, root, provider, tmp_path, monkeypatch):
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(labs.accelerator, "choose", lambda: Accelerator(kvm, "that is why"))
    monkeypatch.setattr(labs.os, "geteuid", lambda: 0 if root else 1000)
    spec, why = labs.chosen(LabSpec())
    assert spec.provider == provider
    assert why.startswith(f"provider {provider}: ")
    assert "that is why" in why


def test_a_lab_that_is_there_stays_what_it_is(paper, tmp_path):
    up()
    assert labs.chosen(LabSpec()) == (LabSpec(provider="paper"), "")
