"""What a machine is and has, and what keeps it from serving models."""
