"""What logs tell: the failures that are known, and the facts beside them."""
