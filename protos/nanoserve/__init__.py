"""What every process agrees on: the generated contracts, and the conventions beside them."""
