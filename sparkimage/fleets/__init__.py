"""Images on the nodes of a fleet: on every one or on none."""
