"""Text on its way in: formats, tokens, packing, and queries."""
