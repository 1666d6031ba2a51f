"""Adapters: files that change a model's weights, such as LoRAs, read from any program and merged."""
