"""What logs tell: the known failures, and the facts beside them."""
