"""What a server is started with where nothing else is asked for; as in the recipe."""

from __future__ import annotations

API_PORT = 8000
"""Where the API answers, on the head."""
MASTER_PORT = 29519
"""Where the ranks meet, on the head."""
GPU_MEMORY_UTILIZATION = 0.80
"""The part of the memory that the server takes."""
