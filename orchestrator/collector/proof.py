"""That a guest executes, and how fast: in a child process each, as KVM may hang."""

import os
import time
from typing import Any, Callable, Dict, Tuple

from . import child, machine_x86
from .kvm import name

ITERATIONS = 20000  # 10 microseconds in hardware, 30 milliseconds emulated
SLOW_NS = 200.0  # per iteration; hardware needs below 1, an interpreter of machine code below 50, KVM's emulator 1000


def both() -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Execution and speed."""
    nonce = os.urandom(16)
    execution = execute(lambda report: machine_x86.prove(report, nonce))
    if execution["outcome"] != "works":
        return execution, {"outcome": "unknown"}
    return execution, speed()


def execute(job: Callable[[child.Report], Dict[str, Any]]) -> Dict[str, Any]:
    """Run `job` in a child; its answer, or the step and the reason at which it broke."""
    begun = time.perf_counter()

    def guarded(report: child.Report) -> Dict[str, Any]:
        try:
            return dict(job(report), outcome="works")
        except OSError as error:
            return {"outcome": "broken", "errno": name(error), "detail": error.strerror or ""}
        except machine_x86.Step as problem:
            return {"outcome": "broken", "exit_reason": problem.reason, "detail": problem.detail}

    answer, step, death = child.ask(guarded, 3.0)
    answer = answer or {"outcome": "broken", "detail": death}
    return dict(answer, step=step, duration_ms=(time.perf_counter() - begun) * 1000)


def speed() -> Dict[str, Any]:
    """Hardware or emulation: the kernel's own count where it keeps one, the time where it does not."""
    answer = execute(lambda report: machine_x86.time_loop(report, ITERATIONS))
    if answer["outcome"] != "works":
        return {"outcome": "unknown", "detail": answer.get("detail", "")}
    counted, loop_ms = answer["emulated_instructions"], answer["loop_ms"]
    per_loop_ns = loop_ms * 1e6 / ITERATIONS
    slow = per_loop_ns > SLOW_NS if counted is None else counted >= ITERATIONS
    return {
        "outcome": "emulated" if slow else "hardware",
        "loop_ms": loop_ms,
        "iterations": ITERATIONS,
        "emulated_instructions": counted,
        "detail": "judged by time, this kernel counts no emulated instructions" if counted is None else "",
    }
