"""Networks: operations, cells, registration with timm, cost."""
