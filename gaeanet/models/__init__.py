"""The networks: operations, cells, their registration with timm, and what they cost."""
