"""``python -m sparkimage``, and the installed program."""

from __future__ import annotations

import atexit
import gc


def main() -> None:
    """Run the command line. A sixth of a short command's time would go to the garbage collector:
    what imports make lives as long as the program, and need not be searched at its end, either."""
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    from sparkimage.cli import app

    app.main()


if __name__ == "__main__":
    main()
