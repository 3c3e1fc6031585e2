"""Videos: reading, upscaling and writing them, segment by segment. Needs the extra `video`."""
