"""A stand-in of vLLM."""
