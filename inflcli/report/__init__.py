"""Rendering of a finished run. Nothing here opens a file or an artifact.

`stages.report` fills the dataclasses of `model`; `html`, `terminal`, `markdown` and `jsonl` turn
them into text. All text of the corpus and of the queries is hostile until `text` has been over it.
"""
