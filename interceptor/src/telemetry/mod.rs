//! Counters, logs and the status API.

pub mod metrics;

pub use metrics::{Metrics, Source};
