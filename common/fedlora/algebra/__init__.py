"""Linear algebra on the factors of low-rank products. Pure: tensors in, tensors out."""
