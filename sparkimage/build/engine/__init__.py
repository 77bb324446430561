"""The Docker Engine to build with: the one that answers, or a private one."""
