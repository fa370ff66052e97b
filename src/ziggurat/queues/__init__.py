"""Layer 2, the queue: buffering, delivery guarantees, priority, partition."""
