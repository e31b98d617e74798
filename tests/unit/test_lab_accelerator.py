"""What executes the hosts of a lab: decided by a guest that ran, not by a file."""

import pytest

from orchestrator.errors import LabError
from orchestrator.lab.accelerator import choose

OPENS = {"exists": True, "errno": "", "group": "kvm", "mode": 0o660}
WORKS = {"outcome": "works"}


def here(node=OPENS, execution=WORKS, speed=None):
    return lambda: (node, execution, speed or {"outcome": "hardware" if execution is WORKS else "unknown"})


def test_a_guest_that_ran_in_hardware_makes_it_kvm(tmp_path):
    assert choose(look=here(), modules=tmp_path).name == "kvm"


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (here(speed={"outcome": "emulated"}), "emulates every instruction"),
        (here(execution={"outcome": "skipped", "detail": "there is no /dev/kvm"}), "there is no /dev/kvm"),
        (here(execution={"outcome": "broken", "errno": "EBUSY"}), "executes no guest (EBUSY)"),
        (here(speed={"outcome": "unknown", "detail": "not done after 3 s"}), "not done after 3 s"),
    ],
)
def test_anything_less_is_software_and_says_why(look, why, tmp_path):
    found = choose(look=look, modules=tmp_path)
    assert found.name == "tcg"
    assert why in found.why
    with pytest.raises(LabError, match="KVM does not do"):
        choose("kvm", look=look, modules=tmp_path)


@pytest.mark.parametrize("wanted", ["auto", "kvm"])
@pytest.mark.parametrize(
    ("node", "fix"),
    [
        ({"group": "virt", "mode": 0o660}, "Run: sudo usermod -aG virt "),
        ({"group": "root", "mode": 0o600}, "Run: sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm && sudo usermod"),
        ({"group": "root", "mode": 0o660}, "Run: sudo chgrp kvm /dev/kvm"),  # nobody should have to join root
    ],
)
def test_a_device_that_this_user_may_not_open_comes_with_the_command_that_permits_it(wanted, node, fix, tmp_path):
    look = here(node={"exists": True, "errno": "EACCES", **node}, execution={"outcome": "broken"})
    with pytest.raises(LabError, match="may not open it") as caught:
        choose(wanted, look=look, modules=tmp_path)
    assert fix in caught.value.hint
    assert "--accel tcg" in caught.value.hint


def test_software_that_was_asked_for_needs_no_look():
    def look():
        raise AssertionError("nobody has to look")

    assert choose("tcg", look=look).name == "tcg"


@pytest.mark.parametrize(("value", "nested"), [("Y\n", True), ("1\n", True), ("N\n", False), ("0\n", False)])
def test_hosts_have_kvm_of_their_own_only_where_it_is_nested(value, nested, tmp_path):
    (tmp_path / "kvm_amd" / "parameters").mkdir(parents=True)
    (tmp_path / "kvm_amd" / "parameters" / "nested").write_text(value)
    assert choose(look=here(), modules=tmp_path).nested is nested
