"""What the tokens mean: maps of centrality, their quality, and the claims about them."""
