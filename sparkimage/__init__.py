"""Build, prove and ship container images for clusters of Docker nodes."""

__version__ = "0.1.0"
