"""The lower-level problem: what users build, its parameters frozen, and its adjoint equation."""
