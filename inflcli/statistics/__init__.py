"""What the distribution of a query's scores says: its tail, its concentration, its agreement with
another scan's.
"""
