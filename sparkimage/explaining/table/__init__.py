"""The table of known failures, a module for each area."""
