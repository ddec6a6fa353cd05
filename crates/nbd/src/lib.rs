//! NBD client with structured replies and block status, many requests in flight.
