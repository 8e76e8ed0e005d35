"""One reader for each kind of files: from a folder to bytes in memory."""
