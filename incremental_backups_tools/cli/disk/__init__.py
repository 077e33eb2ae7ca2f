"""``ibt disk``: copies of files spread over offline disks."""
