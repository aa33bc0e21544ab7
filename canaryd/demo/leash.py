"""Ties this process to the life of the one that started it, then becomes the wanted program.

Run as a script, by path, by `processes`; it never imports anything of canaryd and never forks.
Usage: leash.py STARTER_PID PROGRAM [ARGUMENT ...]
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Ask the kernel for SIGKILL at the starter's death (Linux only), then exec; exits 127 when that fails."""
    starter, program = int(argv[1]), argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != starter:  # it died before we asked: nobody will ever send the signal
            sys.exit(125)
    try:
        os.execv(program[0], program)  # noqa: S606  # no shell: the program is named by its path
    except OSError as e:
        sys.stderr.write(f"{program[0]}: {e.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv)
