"""What other tools make of the same network under the same budget of FLOPs."""
