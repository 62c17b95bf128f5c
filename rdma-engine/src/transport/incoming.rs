//! Reads frames, and the data behind them, from a stream.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use tokio::runtime::Handle;

use super::Socket;
use crate::protocol::frame::HEADER;
use crate::protocol::{FrameHeader, ProtocolError};

/// How many bytes are read at once while a frame is awaited: a frame with the data of a small
/// needle. Data of a large needle that is read this way is copied once more.
const READ_AHEAD: usize = 8 << 10;

/// The most descriptors that may wait for the messages they came with.
const MAX_WAITING_FILES: usize = 16;

/// Why a stream has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    #[error("the other side closed the connection")]
    Closed,
}

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Incoming {
    socket: Arc<Socket>,
    /// Where reads go first, so that a read whose future is dropped leaves `buffer` consistent.
    read_buffer: Box<[u8; READ_AHEAD]>,
    buffer: BytesMut,
    /// Descriptors that came with messages; `None` if they are not accepted.
    files: Option<VecDeque<OwnedFd>>,
}

impl Incoming {
    pub(crate) fn new(socket: Arc<Socket>) -> Self {
        let read_buffer = Box::new([0; READ_AHEAD]);
        Self { socket, read_buffer, buffer: BytesMut::new(), files: Some(VecDeque::new()) }
    }

    /// Accepts no descriptors: a peer may send a file whose closing blocks for any time.
    pub(crate) fn without_files(socket: Arc<Socket>) -> Self {
        let mut incoming = Self::new(socket);
        incoming.files = None;
        incoming
    }

    pub(crate) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// Reads the next frame. Dropping the future before it is ready loses no bytes.
    pub(crate) async fn frame(&mut self) -> Result<(FrameHeader, Bytes), StreamError> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<HEADER>() {
                let header = FrameHeader::parse(header)?;
                let length = header.length as usize;
                if self.buffer.len() >= HEADER + length {
                    self.buffer.advance(HEADER);
                    return Ok((header, self.buffer.split_to(length).freeze()));
                }
            }
            self.more().await?;
        }
    }

    /// Reads data that follows the last frame to the beginning of `destination`, as much as has
    /// arrived. Returns how many bytes: at least one, unless `destination` is empty.
    pub(crate) async fn data(&mut self, destination: &mut [u8]) -> Result<usize, StreamError> {
        let count = if self.buffer.is_empty() {
            self.socket.read(destination, self.files.as_mut()).await?
        } else {
            let count = self.buffer.len().min(destination.len());
            self.buffer.copy_to_slice(&mut destination[..count]);
            count
        };
        if count == 0 && !destination.is_empty() { Err(StreamError::Closed) } else { Ok(count) }
    }

    /// Discards `length` bytes of data.
    pub(crate) async fn discard(&mut self, mut length: usize) -> Result<(), StreamError> {
        while length > 0 {
            if self.buffer.is_empty() {
                self.more().await?;
            }
            let count = self.buffer.len().min(length);
            self.buffer.advance(count);
            length -= count;
        }
        Ok(())
    }

    /// The oldest descriptor that has arrived and was not taken yet.
    pub(crate) fn take_file(&mut self) -> Option<OwnedFd> {
        self.files.as_mut().and_then(VecDeque::pop_front)
    }

    async fn more(&mut self) -> Result<(), StreamError> {
        let count = self.socket.read(&mut self.read_buffer[..], self.files.as_mut()).await?;
        self.buffer.extend_from_slice(&self.read_buffer[..count]);
        if self.files.as_ref().is_some_and(|files| files.len() > MAX_WAITING_FILES) {
            return Err(ProtocolError::Limit.into());
        }
        if count == 0 { Err(StreamError::Closed) } else { Ok(()) }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let files = self.files.take().unwrap_or_default();
        // Closing a file of a FUSE mount waits for its server. Without a runtime the process is
        // ending.
        if !files.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(files));
        }
    }
}
