"""How tandem_ext is built: what to build (decide), how to compile it (compile), and the PEP 517 backend (backend)."""
