"""Lexical retrieval as pure array functions: which sequences share words with a query."""
