//! Counters of the daemon and the status API.
//!
//! Code that moves bytes calls [`Metrics`], which costs some tens of nanoseconds and cannot fail.
//! Code that learns of a change of state calls [`Status`]. [`server`] serves both. No read
//! depends on this module: if the status server fails or a gauge is not set, the mount goes on.
//!
//! ```text
//!  Metrics ──► export ────────────────────────► /metrics         every read, counted per thread
//!     │           └─► otlp ─────────────────────► a collector      the same, and slow reads
//!     │  └───► ratios, history ──► live ──────► /api/v1/live     a snapshot every second
//!     │  └───► followers ────► trace ────────► /api/v1/trace    reads, while somebody asks
//!     │  └───► profilers ────► profile ──────► /api/v1/profile  requests, while somebody asks
//!  Status ───► report ────────────┘└──────────► /api/v1/status   health, activity: on request
//!                                  page ──────► /                shows what live sends
//! ```

pub mod access;
pub mod activity;
pub mod answered_read;
pub mod export;
pub mod followed_call;
pub mod health;
pub mod history;
pub mod kernel;
mod labels;
mod live;
pub mod log_limit;
pub mod metrics;
pub mod miss_ratio;
pub mod otlp;
mod page;
pub mod peer;
pub mod profile;
pub mod ratios;
pub mod read_followers;
pub mod report;
pub mod request_profile;
pub mod server;
mod shard;
pub mod slow_reads;
pub mod status;
pub mod tls;
mod totals;
pub mod trace;
mod verdict;
pub mod window;

pub use kernel::{CapabilityReport, KernelCounts, KernelReads};
pub use metrics::{
    CacheClass, CacheUsage, DiskCacheUsage, KernelEventKind, Metrics, Outcome, ResidentFiles, Source, Trigger,
};
pub use miss_ratio::{MissRatioCurve, MissRatioPoint};
pub use shard::FlowTotal;
pub use status::Status;
