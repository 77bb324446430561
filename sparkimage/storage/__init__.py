"""Images by digest, and the archives that engines load."""
