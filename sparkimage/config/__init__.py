"""The files that people write, the lock, and the frozen plan that comes of them. Pure."""
