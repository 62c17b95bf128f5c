//! The SeaweedFS client, read side.

pub mod codec;
pub mod entry;
pub mod http1;
pub mod jwt;
pub mod locations;
#[cfg(test)]
pub(crate) mod scripted;
pub mod security;
pub mod volume;

/// Messages and client of the filer's gRPC service, generated from `proto/filer.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod pb {
    tonic::include_proto!("filer_pb");
}
