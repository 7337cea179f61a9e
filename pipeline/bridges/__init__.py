"""What a domain natively says (a row, an event, a finished job) becomes a look. Pure, one module per domain."""
