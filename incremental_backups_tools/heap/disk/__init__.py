"""Copies of files spread over offline disks, of which one at a time is there."""
