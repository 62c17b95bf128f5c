//! How the bytes of an answer get into the reader's memory: one [`DataPath`] for each transport.
//!
//! ```text
//!  EngineConnection ─ answer ─► DataPath::read_into ─ fills ─► ReadMemory
//!                                   TcpPath     the bytes follow in the stream
//!                                   LocalPath   the bytes are in a file that this host can read
//!                                   VerbsPath   the bytes are in the message, or come by RDMA READ
//! ```
//! Requests go over the stream of the bootstrap, unless the path carries messages of its own.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "verbs")]
use std::sync::Weak;

use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

#[cfg(feature = "verbs")]
use super::answer::Session;
use super::answer::{InlineData, ReceivedAnswer};
use super::destination::ReadMemory;
use super::lease::BootTime;
use super::verification::{ReadChecksum, matched_part};
use super::volume_file::VolumeFile;
use super::{Delivered, ReadError, ReadTarget};
use crate::protocol::{NeedleInfo, Transport};

pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Data is read and added to the checksum in pieces of this many bytes, which fit the processor's
/// cache.
pub(super) const CHUNK_SIZE: usize = 256 << 10;

/// A read request that the engine has answered.
pub(super) struct SentRead<'a> {
    pub(super) target: ReadTarget<'a>,
    /// A time before the request was sent.
    #[cfg_attr(not(feature = "verbs"), expect(dead_code, reason = "only grants have leases"))]
    pub(super) sent_at: BootTime,
}

/// A transport, from the side of the data.
pub(super) trait DataPath: Send + Sync {
    fn transport(&self) -> Transport;

    /// Fills `memory` with the bytes that `answer` brings or names, as many as were asked for.
    fn read_into<'a>(
        &'a self,
        answer: ReceivedAnswer,
        read: &'a SentRead<'a>,
        memory: &'a mut dyn ReadMemory,
    ) -> BoxFuture<'a, Result<Delivered, ReadError>>;

    /// Takes over a descriptor that came with an answer.
    fn take_file(&self, descriptor: OwnedFd) -> BoxFuture<'_, io::Result<Arc<VolumeFile>>> {
        drop(descriptor);
        Box::pin(async { Err(io::Error::other("a file over this transport")) })
    }

    /// Starts to take the engine's messages, if the path carries any. Returns false if it cannot.
    #[cfg(feature = "verbs")]
    fn start(&self, session: Weak<dyn Session>) -> bool {
        drop(session);
        true
    }

    /// The permit to send one request as a message, if the path carries messages and one is left.
    fn message_permit(&self) -> Option<OwnedSemaphorePermit> {
        None
    }

    /// Sends a message, if there is room for it. Returns whether it was sent.
    fn send_message(&self, message: &[u8]) -> bool {
        let _ = message;
        false
    }

    /// Waits for the answer to a request that was sent as a message.
    fn wait_for_answer<'a>(
        &'a self,
        answer: &'a mut oneshot::Receiver<ReceivedAnswer>,
    ) -> BoxFuture<'a, Result<ReceivedAnswer, RecvError>> {
        Box::pin(answer)
    }

    /// Ends all reads that are in progress.
    fn abort(&self) {}

    /// Whether the path has failed by itself, so that the connection is of no use any more.
    fn is_broken(&self) -> bool {
        false
    }

    /// Whether other transports should be used for a while, because this one does not work here.
    fn is_unusable(&self) -> bool {
        false
    }
}

/// Data in line on the TCP connection.
pub(super) struct TcpPath;

impl DataPath for TcpPath {
    fn transport(&self) -> Transport {
        Transport::Tcp
    }

    fn read_into<'a>(
        &'a self,
        answer: ReceivedAnswer,
        read: &'a SentRead<'a>,
        memory: &'a mut dyn ReadMemory,
    ) -> BoxFuture<'a, Result<Delivered, ReadError>> {
        Box::pin(async move {
            match answer {
                ReceivedAnswer::Data(needle, data) => {
                    read_inline(needle, data, read, memory, Transport::Tcp).await
                }
                _ => Err(unexpected_answer()),
            }
        })
    }
}

/// Reads data that follows its answer in the stream.
pub(super) async fn read_inline(
    needle: NeedleInfo,
    mut data: InlineData,
    read: &SentRead<'_>,
    memory: &mut dyn ReadMemory,
    transport: Transport,
) -> Result<Delivered, ReadError> {
    let destination = matched_part(&needle, &read.target, memory.bytes())?;
    let mut checksum = ReadChecksum::default();
    let mut filled = 0;
    while filled < destination.len() {
        let end = destination.len().min(filled + CHUNK_SIZE);
        let count = data.read(&mut destination[filled..end]).await?;
        checksum.add(&destination[filled..filled + count]);
        filled += count;
    }
    Ok(Delivered { needle, verified: checksum.verify(&needle)?, transport })
}

/// The engine has answered in a way that the transport of its session does not have.
pub(super) fn unexpected_answer() -> ReadError {
    ReadError::Lost("an answer of another transport".to_owned())
}
