"""Networks whose weights are made from latent vectors, one for each width group, while it is decided how wide to be."""
