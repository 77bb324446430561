"""What a node is and has, and what keeps it from serving models."""
