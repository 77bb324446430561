"""Images on the nodes of a fleet: on every node or on none."""
