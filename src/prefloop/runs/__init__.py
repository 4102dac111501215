"""The only floor that trains against clock, disk and signals."""
