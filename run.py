"""The command line: `python run.py --actors 64` trains; see `--help`."""

from supervisor.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
