"""The known failures, by subject."""
