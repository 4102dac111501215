"""Networks: policy, scalar heads, packed attention, update."""
