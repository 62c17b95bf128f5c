//! Counters, logs and the status API.

/// Where the bytes of a read came from. The names are label values of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The block was in the daemon's cache.
    Registered,
    /// A volume server, over HTTP.
    Http,
}
