"""Jobs: each picture is drawn once, stored with its metrics, and reused by every later request."""
