"""How good samples are, as figures."""
