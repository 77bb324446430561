"""``python -m sparkimage``."""

from sparkimage.cli import main

main()
