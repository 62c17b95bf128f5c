//! The SeaweedFS client for reading: filers over gRPC ([`filer`], [`subscribe`]), volume servers
//! over HTTP ([`volume`]), and the meaning of their answers ([`entry`], [`decode`], [`codec`]).

pub mod address;
mod channel;
pub mod codec;
pub mod decode;
mod endpoint;
pub mod entry;
mod entry_filter;
mod event;
mod failover;
pub mod filer;
mod freshness;
pub mod http1;
mod listing;
mod liveness;
pub mod locations;
mod message;
pub mod permissions;
mod ping;
mod rpc;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
pub(crate) mod scripted_filer;
pub mod security;
pub mod subscribe;
pub mod volume;

/// Messages and server of the gRPC service of a `weed mount`, generated from `proto/mount.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod mount_pb {
    tonic::include_proto!("messaging_pb");
}

/// Messages and client of the filer's gRPC service, generated from `proto/filer.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod pb {
    tonic::include_proto!("filer_pb");
}
