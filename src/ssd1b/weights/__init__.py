"""Models on disk and on the hub: described, loaded, written."""
