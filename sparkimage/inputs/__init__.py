"""What comes from elsewhere: pins resolved, and what is locked fetched."""
