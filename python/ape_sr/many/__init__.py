"""Many machines: pictures handed to workers on a Ray cluster, each done once, whatever dies on the way."""
