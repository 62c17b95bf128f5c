//! What the daemon says about itself: counters, logs and the status API.
//!
//! Whoever moves bytes calls [`Metrics`]; it costs some tens of nanoseconds and can never fail. Whoever learns
//! something worth telling calls [`Status`]. [`server`] shows both. Nothing in here is needed to answer a read: a
//! status server that cannot serve, or a gauge nobody set, leaves the mount as it is.

pub mod curve;
pub mod export;
mod exposition;
pub mod kernel;
pub mod logs;
pub mod metrics;
pub mod peer;
pub mod report;
pub mod server;
mod shard;
pub mod status;
pub mod window;

pub use curve::{MissRatioCurve, MissRatioPoint};
pub use kernel::{KernelCounts, KernelReads, Sight};
pub use metrics::{CacheClass, CacheUsage, Metrics, Outcome, ResidentFiles, SeenKind, Source, Trigger};
pub use shard::FlowTotal;
pub use status::Status;
