"""What a build will do, decided: the matrix, its lock, and from both a frozen plan."""
