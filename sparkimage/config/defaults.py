"""What several parts say alike: the prefix of labels, and defaults of a server."""

from __future__ import annotations

LABEL = "dev.sparkimage."
"""Prefix of the labels that the OCI image spec does not define."""
API_PORT = 8000
"""Port of the API, on the head."""
MASTER_PORT = 29519
"""Port of the ranks' rendezvous, on the head."""
GPU_MEMORY_UTILIZATION = 0.80
"""The part of the memory that the server takes."""
