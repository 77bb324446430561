"""How fast a server of models is."""
