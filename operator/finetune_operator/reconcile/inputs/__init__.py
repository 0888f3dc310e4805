"""What a pass reads: the snapshot, the types of its secondary resources, and the indexes of the caches."""
