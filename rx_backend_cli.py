"""The entry point of the command `rx-backend`, in front of all imports that take time."""

import atexit
import os
import sys

__all__ = ("main",)


def main() -> int:
    """
    Run the command; see `rx_backend.cli`. Return its exit code.

    Ctrl-C is silent from the first import on.
    """
    _open_standard_streams()
    code = 1

    def leave() -> None:
        # Threads of the Dynamo runtime that call into an interpreter which is being finalized abort
        # the process. What is registered first runs last, so all other handlers have run.
        if "dynamo" in sys.modules:
            import logging  # noqa: PLC0415  # its own handler may be registered before this one

            logging.shutdown()
            os._exit(code)

    atexit.register(leave)
    try:
        from rx_backend.cli import main as run  # noqa: PLC0415  # the import may be interrupted

        code = run()
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        # As the interpreter has it, which does not get to that.
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    return code


def _open_standard_streams() -> None:
    """Have a standard stream that is closed lead nowhere, or a socket would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # The lowest free number is the stream's own.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    sys.exit(main())
