"""How we look. The only folder that imports OR-tools."""
