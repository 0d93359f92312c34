"""Payment service providers: one package for each, behind one interface."""
