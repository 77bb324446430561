"""Proves images, seals what was seen, and is asked before anything ships."""
