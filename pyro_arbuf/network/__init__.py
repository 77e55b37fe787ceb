"""Pure torch: what may be read, attention, blocks, embeddings, predictives, and the Network they make up."""
