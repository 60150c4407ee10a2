"""Block training: many clients in one batched pass over a frozen backbone."""
