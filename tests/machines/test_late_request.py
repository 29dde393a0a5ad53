"""What a cut link holds back: whoever comes next waits until no request of a lost sender can arrive any more."""

from __future__ import annotations

import os
import sys
import time

from tests.machines import late_request
from tests.machines.machine import Machine
from tests.support.scripted import Answer, running_script

# The kernel sends again what got no answer, after 0.2 s, 0.4 s, and so on: after 12.8 s the next time.
SEEN_BY_THEN = 20.0


def test_a_request_that_was_held_back_is_never_sent_later() -> None:
    machine = Machine(9)
    try:
        with running_script() as script:
            script.answers = [Answer(json=[]), Answer(json=[])]
            command = [sys.executable, "-m", "tests.machines.late_request", script.url]
            program = machine.start(command, {"PATH": os.environ["PATH"], "PYTHONPATH": f"include:{os.getcwd()}"})
            while not script.requests:
                assert program.poll() is None, "it has ended without a request"
                time.sleep(0.01)
            machine.cut()
            program.wait(30)
            client = late_request.client()
            time.sleep(client.longest_request - late_request.READ_TIMEOUT)  # which it has waited itself
            client.close()
            machine.mend()
            time.sleep(SEEN_BY_THEN)
            assert [request.path for request in script.requests] == ["/first"]
    finally:
        machine.close()
