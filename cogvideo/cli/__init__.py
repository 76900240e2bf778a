"""One file per command: parser, call into the library, exit status."""
