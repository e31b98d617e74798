"""What every test needs, wherever it was started from."""

import signal

# A job in the background of a script starts with Ctrl-C ignored, and its children inherit that: a test that interrupts
# one of them would wait for ever. With a handler here, they start with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
