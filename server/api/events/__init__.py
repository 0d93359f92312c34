"""Events, consumers and the stream over HTTP."""
