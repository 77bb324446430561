"""Images by digest: the OCI image store, archives, and what lies in the layers."""
