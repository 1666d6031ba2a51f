"""Fine-tuning of a model on captioned images: adapters, whole UNets, new words and ControlNets."""
