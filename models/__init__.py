"""Neural and linguistic tools; nothing of Arrow, Ray or stages."""
