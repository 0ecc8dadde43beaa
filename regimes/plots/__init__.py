"""Pictures of a classified grid and the report page. Nothing here imports torch."""
