"""Use cases: what a command, a notebook and a server call alike. They put the rooms below together."""
