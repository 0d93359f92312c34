"""Payment Service Providers: one module a provider, behind one small interface."""
