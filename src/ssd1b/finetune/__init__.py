"""Fine-tuning of a model on captioned images: adapters and whole UNets."""
