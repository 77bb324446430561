"""A plan executed by BuildKit, and the Docker Engine that it needs."""
