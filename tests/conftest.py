"""What every test needs, wherever it was started from."""

import signal

from hypothesis import HealthCheck, settings

# A job in the background of a script starts with Ctrl-C ignored, and its children inherit that: a test that interrupts
# one of them would wait for ever. With a handler here, they start with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a time, not even one that Hypothesis would set.
settings.register_profile("kvmfleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kvmfleet")
