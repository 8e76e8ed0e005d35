"""Import networks from other simulators and export to them, layer by layer, with equivalent neurons."""
