"""Embedded demo data: a small factual corpus, the small language model that was trained on it, and
queries about facts the model knows. ``build_corpus`` writes ``corpus.jsonl`` from two public data
packages, ``train`` makes the tokenizer and the model from that file, and ``queries.jsonl`` asks
"which paragraphs taught the model this?". The data files can be used without running either script.
"""
