"""The command line: `python run.py --actors 64` trains, and so does `foray`; see `--help`."""

import locale
import os
import sys
from pathlib import Path


def main() -> int:
    """Run the command line and return its exit status.

    It is the installed command `foray`, too. Modules are looked for beside this file first, and not
    in the working directory, which has modules of the user's own.
    """
    _use_utf8()
    # Python puts the working directory first for `-m run`, this file's for `run.py`, and that of
    # the command for `foray`: ours comes first, the others not at all.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    if __name__ != "__main__":
        os.environ["FORAY_COMMAND"] = "foray"  # for messages: config.options.this_command

    try:
        try:
            from protocol.output import outlive_readers
            from supervisor.cli.main import main as run_command
            from supervisor.interrupts import take_signals_as_ctrl_c
        except ModuleNotFoundError as error:
            return _explain_missing(error)

        outlive_readers()
        take_signals_as_ctrl_c()
        return run_command()
    except KeyboardInterrupt:  # before there is anything to put in order
        return 130


def _explain_missing(error: ModuleNotFoundError) -> int:
    """Say what to do about a library that this Python does not have; returns the exit status."""
    print(
        f"error: {error.name} is not installed for {sys.executable}; activate the environment that "
        "has it (source .venv/bin/activate), or install this project there (make install)",
        file=sys.stderr,
    )
    return 1


def _use_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has another encoding.

    Files of ours, of models and of environments are UTF-8, and would be read as something else
    without a word. Processes that are started from here inherit the mode.
    """
    encoding = locale.getpreferredencoding(False).lower().replace("-", "")
    if encoding == "utf8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
