"""Pictures: files, degradation, training crops."""
