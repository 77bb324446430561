"""Images on their way out: as files, and into registries, where they are asked for again."""
