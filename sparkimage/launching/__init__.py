"""What was distributed, started: commands that fit the image, and what goes on on the nodes."""
