"""How trained models are used: decoding token by token."""
