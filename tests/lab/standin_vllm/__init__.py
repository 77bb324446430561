"""A stand-in for vLLM: its command line, its start on several nodes, its API; no model."""
