"""What runs on top of hypergradients: objectives of batches, certified descent, the solution as a layer."""
