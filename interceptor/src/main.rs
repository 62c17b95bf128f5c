//! The `interceptor` program.

fn main() {}
