"""The Docker Engine to work with: found, or set up in the home."""
