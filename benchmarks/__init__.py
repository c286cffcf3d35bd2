"""Programs that print numbers; nothing imports them."""
