"""A plan executed: looked at beforehand, built, stored."""
