"""Tabletop: a procedural world of lit solids with exact captions, to train and to measure a miniature on."""
