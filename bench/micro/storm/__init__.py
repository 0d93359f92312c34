"""Many websockets on one worker, and a storm of reconnections."""
