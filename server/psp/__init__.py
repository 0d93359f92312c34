"""Payment Service Providers: one package or module for each, behind one interface."""
