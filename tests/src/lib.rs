//! Fixtures of the end-to-end suites.
