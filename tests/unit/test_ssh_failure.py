"""What is said about a host that ssh did not reach."""

import errno

import pytest

from orchestrator.reach.ssh_failure import Target, explain

TARGET = Target(address="10.0.0.9", port=22, user="kvm", jump="", timeout_s=10, keys={}, password=False)


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH])
def test_no_route_may_mean_that_the_host_is_off(number):
    """On a network of its own, a host that is off is all that EHOSTUNREACH can mean."""
    silence = explain(OSError(number, "No route to host"), TARGET)
    assert "no route to 10.0.0.9 port 22" in silence.problem
    assert silence.hint.startswith("Is it powered on?")
    assert "ip route get 10.0.0.9" in silence.hint
