"""Images in registries and as archives: published, signed, and verified there."""
