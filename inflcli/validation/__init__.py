"""Ground truth that estimates of influence are held against."""
