"""The command line: `python run.py --actors 64` trains; see `--help`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the working directory first for `-m run`, and this file's for `run.py`: ours comes first, the other not at all.
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.insert(0, str(Path(__file__).resolve().parent))

    try:
        from protocol.output import outlive_readers
        from supervisor.cli import main
        from supervisor.interrupts import take_signals_as_ctrl_c

        outlive_readers()
        take_signals_as_ctrl_c()
        status = main()
    except KeyboardInterrupt:  # before there is anything to put in order
        status = 130
    raise SystemExit(status)
