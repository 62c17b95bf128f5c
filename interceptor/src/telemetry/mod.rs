//! What the daemon says about itself: counters and the status API.
//!
//! Whoever moves bytes calls [`Metrics`]; it costs some tens of nanoseconds and can never fail. Whoever learns
//! something worth telling calls [`Status`]. [`server`] shows both. Nothing in here is needed to answer a read: a
//! status server that cannot serve, or a gauge nobody set, leaves the mount as it is.
//!
//! ```text
//!  Metrics ──► export ───────────────────────────► /metrics            every read, counted per thread
//!     │  └───► ratios, history ──► live ─────────► /api/v1/live        a look every second
//!  Status ───► report ────────────┘└─────────────► /api/v1/status      health, activity: asked for when somebody looks
//!                                  page ─────────► /                   shows what live sends
//! ```

pub mod access;
pub mod activity;
pub mod export;
mod exposition;
pub mod health;
pub mod history;
pub mod kernel;
mod live;
pub mod log_limit;
pub mod metrics;
pub mod miss_ratio;
mod page;
pub mod peer;
pub mod ratios;
pub mod report;
pub mod server;
mod shard;
pub mod status;
pub mod window;

pub use kernel::{CapabilityReport, KernelCounts, KernelReads};
pub use metrics::{
    CacheClass, CacheUsage, KernelEventKind, Metrics, Outcome, ResidentFiles, Source, Trigger,
};
pub use miss_ratio::{MissRatioCurve, MissRatioPoint};
pub use shard::FlowTotal;
pub use status::Status;
