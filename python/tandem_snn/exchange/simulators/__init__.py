"""Import from and export to other simulators, layer by layer, with equivalent neurons."""
