"""What server and clients share: the run file, messages, errors, random streams, safe files."""
