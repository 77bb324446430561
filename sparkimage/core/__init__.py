"""Errors, processes, files, paths, architectures: what every other package stands on."""
