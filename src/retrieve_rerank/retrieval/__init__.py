"""How a query becomes hits."""
