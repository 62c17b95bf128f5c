//! SeaweedFS needles as they are named and stored, and the engine that serves them beside a volume
//! server.
//!
//! An engine reads a volume server's files ([`store`]) and serves needles ([`server`]) to clients
//! ([`client`]). Both speak one [`protocol`] over every transport: TCP with the data in line,
//! RDMA, or, on the same host, a descriptor of the file that has the data. Both ends check what
//! they receive: a record must be that of the file id ([`needle`]), and a whole needle must have
//! its [`checksum`]. If an engine cannot serve a needle it refuses with a reason ([`Refusal`]),
//! and the client takes its next source, in the end the volume server itself.
//!
//! [`settings`], [`token`], [`proof`] and [`tls`] apply a cluster's `security.toml`, for engines
//! and for all their clients.
//!
//! `verbs` is a safe wrapper over RDMA.

// These macros panic if the stream cannot be written; `daemon::output` and `daemon::logs` do not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod bounded_listener;
pub mod checksum;
pub mod client;
mod file_id;
pub mod memory;
pub mod metrics;
pub mod needle;
pub mod proof;
pub mod protocol;
mod refusal;
pub mod renewable;
pub mod server;
pub mod settings;
pub mod store;
pub mod tls;
pub mod token;
mod transport;
#[cfg(feature = "verbs")]
pub mod verbs;

/// Whether RDMA was built in.
pub const HAS_VERBS: bool = cfg!(feature = "verbs");

/// The ports of this host that RDMA would use, the best first.
///
/// # Errors
/// When there are none; the text says why.
pub fn rdma_ports() -> Result<Vec<String>, String> {
    #[cfg(feature = "verbs")]
    {
        let numa_node = verbs::current_numa_node();
        let selector = verbs::PortSelector { numa_node, ..verbs::PortSelector::default() };
        let ports = verbs::devices().and_then(|devices| selector.select(&devices));
        let ports = ports.map_err(|error| error.to_string())?;
        Ok(ports.iter().map(|port| format!("{} port {}", port.device, port.port)).collect())
    }
    #[cfg(not(feature = "verbs"))]
    Err("this program was built without RDMA".to_owned())
}

pub use file_id::{FileId, ParseFileIdError};
pub use refusal::Refusal;
