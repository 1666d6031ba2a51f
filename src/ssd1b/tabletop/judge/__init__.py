"""The judge: what it reads off a picture, how far it can be trusted, and what pictures have right."""
