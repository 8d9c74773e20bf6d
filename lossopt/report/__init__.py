"""Pages that a person reads after a run: one file each, inert, with everything in it."""
