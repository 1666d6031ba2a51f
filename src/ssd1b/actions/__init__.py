"""Use cases that commands, notebooks and servers share."""
