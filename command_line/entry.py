"""The rim of the program: nothing around it decides whether it starts, nothing that it says can
end it, and an error that is meant for its user becomes one line."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from command_line import streams
from command_line.flags import Arguments
from common.errors import PeerLostError, UserError
from common.files import first_line
from common.launch import is_first, launched, tells_errors
from common.machine import share_cores

STOPS = "SIGINT", "SIGTERM", "SIGHUP"
_before: dict[int, Any] = {}  # the handlers that begin found


def begin(parse: Callable[[], Arguments]) -> Arguments:
    """What parse returns; called before torch is imported, so that --help answers at once and a
    stop while importing is one line."""
    streams.guard()
    os.environ.pop("MPLBACKEND", None)  # notebooks set one that matplotlib may not find here
    try:
        if not is_first():
            streams.hush()
        share_cores()
    except UserError as error:
        streams.speak()
        _tell("", str(error))
        sys.exit(2)
    args = parse()
    _before.update(_handle(_leave_at_once))
    return args


def run(main: Callable[[Arguments], None], args: Arguments) -> None:
    """Call main(args). What the user can do something about is one line and status 2; Ctrl-C is
    status 130, SIGTERM 143, SIGHUP 129; a fault of the program keeps its traceback. Of several
    processes, the first that fails speaks; the others end with status 1."""
    before = {**_handle(_leave_in_order), **_before}
    limit = getattr(args, "deadline", None)
    if limit is not None and hasattr(signal, "setitimer"):  # also while latents are cached
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _leave_in_order)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, limit - time.monotonic()))
    try:
        main(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = _sentence(error)
        speaks = tells_errors[-1]() or sentence is None
        if speaks:
            streams.speak()
        if sentence is None and launched().size == 1:
            raise  # whoever reports it needs the traceback
        if sentence is None:
            traceback.print_exc()
        if speaks:
            _tell(str(launched()), sentence or f"{type(error).__name__}: {first_line(error)}")
        status = 1 if sentence is None or isinstance(error, PeerLostError) else 2
        if launched().size > 1:  # what takes leave of the others would wait for them
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)
    finally:
        if limit is not None and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _before.clear()


def _tell(who: str, sentence: str) -> None:
    line = " ".join(sentence.split("\n")).translate(streams.CONTROLS)
    print(f"{Path(sys.argv[0]).name}: {who}error: {line}", file=sys.stderr)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let handler take the signals that ask for a stop; {signal: who took it before}.

    SIGHUP stays ignored where it is (nohup).
    """
    before = {}
    for name in STOPS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
            continue
        before[number] = signal.signal(number, handler)
    return before


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    """While importing: there is nothing to lose, and no exception may get lost in an import."""
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _leave_in_order(number: int, frame: FrameType | None) -> None:
    """By an exception, so that temporary files are removed and processes ended."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    in_time = number == getattr(signal, "SIGALRM", 0)
    why = "--time-limit" if in_time else signal.Signals(number).name
    print(f"stopped by {why}", file=sys.stderr)
    sys.exit(0 if in_time else 128 + number)


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None where the error is the program's."""
    # Of a GPU (CUDA: OutOfMemoryError; Apple's: RuntimeError) or of the machine (numpy, torch).
    scarce = "out of memory", "can't allocate memory", "not enough memory", "_ALLOC_FAILED"
    said = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, MemoryError) or any(words in said for words in scarce):
        return (
            "out of memory; a smaller --batch needs less, for a training --accumulate 2, a smaller "
            "--channels or size of the images too"
        )
    if "DataLoader worker (pid" in said:
        return (
            "a process that decodes images has died; in a container shared memory may be short "
            "(docker run --shm-size 2g), and --workers 0 needs none"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        why = str(error).strip().split("\n")[0]
        return f"torch.compile does not work here ({why}); pass --compile off"
    return str(error) if isinstance(error, UserError | OSError | PeerLostError) else None
