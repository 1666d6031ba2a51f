"""Networks, without I/O."""
