"""Influence scores as pure tensor functions: scoring routes, their cost, top-k, token scores."""
