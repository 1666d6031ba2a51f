"""Bulk generation: rows of a table become images in shards, with a manifest."""
