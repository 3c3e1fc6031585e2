"""A run over files and folders: what is an input, where its result goes, and what is done already."""
