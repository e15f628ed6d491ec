"""How weights become codes with scales."""
