"""A large model becomes a small one: what is taken out, and the training that makes up for it."""
