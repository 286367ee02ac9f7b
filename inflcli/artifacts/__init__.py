"""Artifacts on disk: the only package that knows file names, manifests and zarr.

Every stage writes one folder. `folder` opens and publishes folders, `manifest` describes them,
`fingerprint` identifies models, tokenizers and files, and one module per kind of artifact
(`corpus`, `factors`, `queries`, `candidates`, `scan`, `attribution`) reads and writes its data.
"""
