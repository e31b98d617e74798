"""`python -m orchestrator`: what the launcher execs."""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> None:
    """Runs the command line. Until it can say that it was interrupted, Ctrl-C ends it without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where `&` of a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from orchestrator.cli import main as root

    root.main()


if __name__ == "__main__":
    main()
