"""Networks only: no printing, no environment, no files."""
