"""Images by digest: the OCI image store, archives, and the files in the layers."""
