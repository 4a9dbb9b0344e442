"""Writing a layer as what trainers of sparse autoencoders load from disk."""
