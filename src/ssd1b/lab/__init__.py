"""Settings chosen by evidence: sweeps over them, what came of each, and what can be told apart."""
