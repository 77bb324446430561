"""``python -m sparkimage``."""

from sparkimage.cli.app import main

main()
