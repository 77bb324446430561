"""Pins resolved through their own clients, and locked inputs fetched."""
