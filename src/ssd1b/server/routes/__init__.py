"""Routes, one file for each dialect."""
