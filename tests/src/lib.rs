//! Fixtures of the end-to-end suites: a real SeaweedFS, real mounts, broken networks.
//!
//! A suite (`tests/tests/*.rs`) is about one theme. It starts a [`Cluster`] of real `weed`
//! processes on loopback ports, writes through the [`Filer`] (or through a [`Mount`] of `weed`
//! itself), mounts the same tree with `interceptor mount` and compares what is read there with
//! what was written.
//!
//! ```text
//!  Pattern ──put──► Filer ──HTTP──► weed filer ──► weed volume ◄── FaultProxy ◄─┐
//!     │                                 ▲                 ▲                     │
//!     └────────── compare ◄── std::fs ◄─┴── Mount (interceptor mount | weed mount)
//! ```
//!
//! Rules that every fixture keeps:
//! * **Nothing is left behind.** A process ends when its owner is dropped, a mount is taken down
//!   even if its daemon is dead, and all of them end with the test program, however that ends
//!   ([`process`]).
//! * **Nothing waits blindly.** Readiness is a condition polled until a deadline ([`eventually`]).
//! * **Nothing leaves this host.** Every server binds 127.0.0.1 on ports leased for its lifetime
//!   ([`ports`]).
//! * **A machine that lacks something skips loudly.** See [`host`].

pub mod browser;
pub mod certificates;
pub mod cluster;
pub mod data;
pub mod engine;
pub mod filer;
pub mod foreign;
pub mod host;
pub mod layer;
pub mod load;
pub mod memory;
pub mod mount;
pub mod needles;
pub mod ports;
pub mod posix;
pub mod process;
pub mod proxy;
pub mod readers;
pub mod reading;
pub mod s3;
pub mod shared;
pub mod status;
pub mod terminal;
pub mod tools;
pub mod user;

pub use browser::{Browser, Viewport};
pub use cluster::{Cluster, ClusterBuilder};
pub use data::Pattern;
pub use engine::Engine;
pub use filer::Filer;
pub use foreign::Bindfs;
pub use layer::{BindMount, Disk, Layer};
pub use load::Load;
pub use mount::{Mount, MountBuilder};
pub use needles::Needles;
pub use proxy::{Fault, FaultProxy};
pub use s3::S3;
pub use shared::Shared;
pub use status::StatusPage;
pub use terminal::Terminal;

use std::time::{Duration, Instant};

/// The longest wait for something that takes `limit` at most on an idle machine: a busy one, or an
/// emulated one, is several times as slow, and no test fails for that.
pub fn patience(limit: Duration) -> Duration {
    4 * limit
}

/// Polls `condition` every few milliseconds until it gives a value, for at most the [`patience`]
/// that `limit` asks for.
///
/// # Errors
/// When the time is over; the text names `what` was awaited.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            anyhow::bail!("{what} did not happen within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
