"""How a program ends: with status 0, or with one line that says what the user has to correct."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

__all__ = ["UserError", "run_program"]

ERROR_STATUS = 2


class UserError(ValueError):
    """A mistake that the user can correct. The text says what is wrong, where, and what to do, in one line."""


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run `main` and exit: 0, or 2 after one `error: ` line on stderr if it raised `UserError`.

    Under torchrun the failing ranks agree, through torchrun's own store, on the one that prints; a rank whose
    collective broke because another rank has already reported its error exits silently.
    """
    try:
        main()
    except UserError as error:
        if _claim_report():
            sys.stdout.flush()
            print("error: " + " ".join(str(error).split()), file=sys.stderr, flush=True)  # noqa: T201
        _leave(ERROR_STATUS)
    except KeyboardInterrupt:
        _leave(130)
    except Exception:
        if _was_reported():
            _leave(ERROR_STATUS)
        raise
    sys.exit(0)


def _leave(status: int) -> NoReturn:
    """Exit at once: destroying a process group would wait for other ranks, and may print after the error line."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _launcher_store():
    """The store that torchrun's agent keeps for its workers, or None outside torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
    except RuntimeError:
        return None


def _report_key() -> str:
    return "bctlab/error/" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _claim_report() -> bool:
    """True on the first rank that asks. The others wait a moment, so that its line is printed before they exit."""
    store = _launcher_store()
    if store is None or store.add(_report_key(), 1) == 1:
        return True
    import time

    time.sleep(1.0)
    return False


def _was_reported() -> bool:
    store = _launcher_store()
    return store is not None and store.add(_report_key(), 0) > 0
