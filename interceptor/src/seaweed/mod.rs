//! The SeaweedFS client, read side.

pub mod address;
mod channel;
pub mod decode;
pub mod entry;
mod event;
mod failover;
pub mod filer;
mod intake;
mod listing;
pub mod locations;
pub mod owners;
pub mod security;
pub mod subscribe;

/// Messages and client of the filer's gRPC service, generated from `proto/filer.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod pb {
    tonic::include_proto!("filer_pb");
}
