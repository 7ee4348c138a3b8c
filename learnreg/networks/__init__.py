"""Input-convex networks as functions of their skip responses: parameters, passes, bounds, and the lifted form."""
