import signal
import subprocess
import sys
import threading

import pytest

from workers.clients.signals import DeferredCall, terminate

#: The main thread holds the event's lock whenever it begins to wait and whenever it ends; here for longer, to be hit.
_HIT_WHILE_IT_BEGINS_TO_WAIT = """
import os, signal, sys
from workers.clients.signals import stop_on_signals

stop = stop_on_signals()
assert not stop.is_set()
with stop._cond:
    os.kill(os.getpid(), int(sys.argv[1]))
    sum(range(10))
sys.exit(0 if stop.wait(10) else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_process_that_is_about_to_wait(number: signal.Signals) -> None:
    # Given a process whose main thread holds what the stop takes, when it is told to stop
    done = subprocess.run(
        [sys.executable, "-c", _HIT_WHILE_IT_BEGINS_TO_WAIT, str(int(number))], timeout=30, check=False
    )

    # Then it does
    assert done.returncode == 0


def test_a_deferred_call_runs_once_however_often_it_is_begun() -> None:
    # Given something deferred
    ran: list[int] = []
    deferred = DeferredCall(lambda: ran.append(threading.get_ident()))

    # When nothing has begun it, then it has not run
    deferred.join(0.05)
    assert ran == []

    # When it is begun twice, then it runs once, in a thread of its own
    deferred.begin()
    deferred.begin()
    deferred.join(10)
    assert not deferred.is_alive()
    assert ran == [deferred.ident]
    assert ran != [threading.get_ident()]


@pytest.mark.parametrize(("on_sigterm", "sufficed"), [("SIG_DFL", True), ("SIG_IGN", False)])
def test_a_process_is_ended_whether_or_not_it_ignores_sigterm(on_sigterm: str, sufficed: bool) -> None:
    # Given a process that may ignore SIGTERM
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.{on_sigterm}); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # When it is terminated
        assert terminate(process, 5.0 if sufficed else 0.5) is sufficed
        # Then it has ended, by the signal that was needed
        assert process.returncode == -(signal.SIGTERM if sufficed else signal.SIGKILL)
        # And a second call is harmless
        assert terminate(process, 1.0)
