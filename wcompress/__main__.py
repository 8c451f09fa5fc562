"""`wcompress` and `python -m wcompress`."""

from __future__ import annotations

import sys

from wcompress import interrupts


def main() -> None:
    """Run the command line and exit with its code; interruptions count from here on, its import included."""
    interrupts.install()
    try:
        from wcompress.cli import main as run_and_exit

        interrupts.check()
        run_and_exit()
    except KeyboardInterrupt:
        interrupts.finish()
        sys.stderr.write(f"wcompress: {interrupts.message()}\n")
        sys.exit(interrupts.exit_code())


if __name__ == "__main__":
    main()
