"""Results for people: what the terminal shows. Nothing is computed here but shares, differences and layout."""
