"""The stages, one driver each, in the pipeline's order:

prepare → fit-factors → precondition → tfidf-filter → scan → attribute → report

A stage reads artifact folders and writes one. Drivers hold the I/O and the loops; the mathematics
is in `ekfac`, `influence` and `retrieval`.
"""
