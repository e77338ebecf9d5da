"""How far two answers are apart."""
