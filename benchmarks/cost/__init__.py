"""What training and judging take: time, memory, disk."""
