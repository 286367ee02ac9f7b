"""inflcli: which training sequences made this language model say that?

Influence functions with EK-FAC for Hugging Face causal language models, as a chain of
command-line stages that each read and write artifacts on disk.
"""

__version__ = "0.1.0"
