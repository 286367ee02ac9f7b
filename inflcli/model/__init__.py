"""Loading a model, finding its tracked modules, and capturing (a, g) from its passes."""
