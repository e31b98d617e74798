"""How right the kernel takes its clock to be, and what it counts time with."""

from typing import Any, Dict, Optional

from . import files

SOURCES = "/sys/devices/system/clocksource/clocksource0/"


def look(container: str) -> Dict[str, Any]:
    """A container cannot set the clock of the machine below, and systemd-nspawn does not even let it ask."""
    return {
        "max_error_ms": None if container else max_error_ms(),
        "source": files.known(SOURCES + "current_clocksource"),
        "sources": files.text(SOURCES + "available_clocksource").split(),
    }


def max_error_ms() -> Optional[float]:
    """The kernel's own estimate, adjtimex(2). timesyncd, chrony and ntpd keep it small; without them it grows to 16 s,
    which is where systemd, too, draws the line. A question to timedated, which begins only then, takes a hundred
    times as long. None where the kernel refuses. Raises ImportError with a Python that has no ctypes."""
    import ctypes

    class Timex(ctypes.Structure):
        """The beginning of it; with no modes nothing is changed."""

        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("rest", ctypes.c_char * 256),
        )

    timex = Timex()
    refused = ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) == -1
    return None if refused else float(timex.maxerror) / 1000
