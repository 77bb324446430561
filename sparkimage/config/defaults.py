"""Defaults of a server, as in the recipe."""

from __future__ import annotations

API_PORT = 8000
"""Port of the API, on the head."""
MASTER_PORT = 29519
"""Port of the ranks' rendezvous, on the head."""
GPU_MEMORY_UTILIZATION = 0.80
"""The part of the memory that the server takes."""
