"""The command line: `python run.py --actors 64` trains; see `--help`."""

import locale
import os
import sys
from pathlib import Path


def use_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has another encoding: files of ours, of
    models and of environments are UTF-8, and would be read as something else without a word.
    Processes that are started from here inherit it."""
    if (
        locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"
        or os.environ.get("PYTHONUTF8") == "1"
    ):
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    use_utf8()
    # Python puts the working directory first for `-m run`, and this file's for `run.py`: ours comes
    # first, the other not at all.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, str(Path(__file__).resolve().parent))

    try:
        from protocol.output import outlive_readers
        from supervisor.cli.main import main
        from supervisor.interrupts import take_signals_as_ctrl_c

        outlive_readers()
        take_signals_as_ctrl_c()
        status = main()
    except KeyboardInterrupt:  # before there is anything to put in order
        status = 130
    raise SystemExit(status)
