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
pub mod curve;
pub mod export;
mod exposition;
pub mod health;
pub mod history;
pub mod kernel;
mod live;
pub mod log_limit;
pub mod metrics;
mod page;
pub mod peer;
pub mod ratios;
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
