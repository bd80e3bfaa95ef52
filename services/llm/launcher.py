"""Runs one command, and lets none of its processes outlive whoever started it.

    python launcher.py TELL_FD GRACE_S COMMAND...

When the command ends, its exit code is written to the descriptor TELL_FD at once; what it started
and left behind gets SIGTERM, and LINGER_S later SIGKILL.

Standard input is a pipe that the starter holds open. When it closes, because the starter wants an
end or because the starter was killed, the command gets SIGTERM, and GRACE_S seconds later the
whole process group gets SIGKILL. A SIGTERM sent to the launcher does nothing: BentoML sends one to
every child of a worker at once, while the worker still answers requests.

Leads a process group of its own. Standard library only, run by its path, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

LINGER_S = 10.0
REAP_EVERY_S = 0.05
# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    tell_fd, grace_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    if os.getpgrp() != os.getpid():
        sys.exit("launcher: start it in a process group of its own, for it ends the whole group")
    signal.signal(signal.SIGTERM, _ignored)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(  # noqa: S603 - the command is what this program is for
        command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_launcher
    )
    threading.Thread(target=_end_when_left, args=(child, grace_s), daemon=True).start()
    code = child.wait()
    os.write(tell_fd, str(code).encode())
    os.close(tell_fd)
    os.killpg(0, signal.SIGTERM)
    if not _others_ended(LINGER_S):
        os.killpg(0, signal.SIGKILL)


def _ignored(_signal: int, _frame: object) -> None:
    """Unlike SIG_IGN, a handler is not inherited by the command."""


def _die_with_launcher() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _end_when_left(child: subprocess.Popen[bytes], grace_s: float) -> None:
    while os.read(0, 4096):
        pass
    child.terminate()
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)


def _others_ended(within_s: float) -> bool:
    """True when nothing that the command started is left. Its orphans are children of ours."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        time.sleep(REAP_EVERY_S)
    return False


if __name__ == "__main__":
    main()
