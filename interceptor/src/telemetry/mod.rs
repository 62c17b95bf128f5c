//! What the daemon says about itself: counters, logs and the status API.
//!
//! Whoever moves bytes calls [`Metrics`]; it costs some tens of nanoseconds and can never fail. Nothing in here is
//! needed to answer a read: a status server that cannot serve, or a gauge nobody set, leaves the mount as it is.

pub mod export;
mod exposition;
pub mod metrics;
mod shard;
pub mod window;

pub use metrics::{CacheUsage, Metrics, Outcome, Source, Trigger};
pub use shard::FlowTotal;
