"""The rim of the program: an error that is meant for its user becomes one line."""

import sys
from collections.abc import Callable
from pathlib import Path

from command_line.flags import Arguments
from common.errors import UserError


def run(main: Callable[[Arguments], None], args: Arguments) -> None:
    """Call main(args). What the user can do something about is one line and status 2; Ctrl-C is
    status 130; a fault of the program keeps its traceback."""
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be no text in any encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise  # whoever reports it needs the traceback
        print(f"{Path(sys.argv[0]).name}: error: {sentence}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None where the error is the program's."""
    if _out_of_memory(error):
        return (
            "out of memory; a smaller --batch needs less, for a training a smaller --channels or "
            "size of the images too"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
        return (
            "a process that decodes images has died; in a container shared memory may be short "
            "(docker run --shm-size 2g), and --workers 0 needs none"
        )
    # A SafetensorError, whose module imports torch, is a full disk, for example.
    told = isinstance(error, UserError | OSError) or type(error).__name__ == "SafetensorError"
    return str(error) if told else None


def _out_of_memory(error: Exception) -> bool:
    """Whether the memory of a GPU (CUDA: OutOfMemoryError; Apple's: RuntimeError) or of the machine
    (numpy: MemoryError; torch: RuntimeError) does not suffice."""
    words = "out of memory", "can't allocate memory", "not enough memory"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in words)
    )
