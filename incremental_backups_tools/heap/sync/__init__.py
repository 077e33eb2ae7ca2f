"""Trees anywhere: snapshots of them in a heap, and one made equal to another, on any fsspec filesystem."""
