"""The published claims about InfSA as data (claims.yaml), and the page of what is known of each (README.md)."""
