"""Find, download, verify, read and write checkpoint files."""
