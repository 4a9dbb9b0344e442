"""Reading vectors and records back: by index, in order, shuffled, by where they come from."""
