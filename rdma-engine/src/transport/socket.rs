//! A connected socket, of which one task reads and others write.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::sendfile;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::tunnel::{STALL_TIMEOUT, Tunnel};

/// The most descriptors that one message may bring; the kernel closes further ones.
const MAX_DESCRIPTORS: usize = 4;

/// A TCP connection, plain or under TLS, or a Unix socket, over which descriptors can travel.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Tls(Tunnel),
    Unix(UnixStream),
}

impl Socket {
    /// The address of a network connection on this host.
    pub(crate) fn near(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok().map(|address| address.ip()),
            Self::Tls(tunnel) => Some(tunnel.near),
            Self::Unix(_) => None,
        }
    }

    /// Reads the bytes that have arrived into `buffer`, and appends descriptors that come with
    /// them to `files`; without `files` the kernel closes them. 0 bytes mean the end.
    pub(crate) async fn read(
        &self,
        buffer: &mut [u8],
        mut files: Option<&mut VecDeque<OwnedFd>>,
    ) -> io::Result<usize> {
        loop {
            let outcome = match self {
                Self::Tcp(stream) => stream.try_read(buffer),
                Self::Tls(tunnel) => tunnel.outcome(tunnel.stream.try_read(buffer)),
                Self::Unix(stream) => match &mut files {
                    Some(files) => self.try_io(Interest::READABLE, |socket| receive(socket, buffer, files)),
                    None => stream.try_read(buffer),
                },
            };
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self {
                    Self::Tcp(stream) => stream.readable().await?,
                    Self::Tls(tunnel) => tunnel.stream.readable().await?,
                    Self::Unix(stream) => stream.readable().await?,
                },
                outcome => return outcome,
            }
        }
    }

    /// Writes as much of `bytes` as can be written without waiting.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Tls(tunnel) => tunnel.stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Writes all of `bytes`. With `more`, an incomplete last packet waits for the next write.
    pub(crate) async fn write_all(&self, mut bytes: &[u8], more: bool) -> io::Result<()> {
        let flags = SendFlags::NOSIGNAL | if more { SendFlags::MORE } else { SendFlags::empty() };
        while !bytes.is_empty() {
            let count = self.when_writable(|socket| Ok(send(socket, bytes, flags)?)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Writes all of `bytes`, with `descriptor` attached to the first of them.
    pub(crate) async fn write_with(&self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor];
        let count = self
            .when_writable(|socket| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
                Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        self.write_all(&bytes[count..], false).await
    }

    /// Sends up to `length` bytes of `file` from `offset` on, as many as there is room for,
    /// without a copy in this process. May wait for the disk, but not for the other side.
    pub(crate) fn try_send_file(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
    ) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, |socket| {
            let mut at = offset;
            Ok(sendfile(socket, file, Some(&mut at), length)?)
        })
    }

    fn try_io<T>(
        &self,
        interest: Interest,
        work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, || work(stream.as_fd())),
            Self::Tls(tunnel) => tunnel.stream.try_io(interest, || work(tunnel.stream.as_fd())),
            Self::Unix(stream) => stream.try_io(interest, || work(stream.as_fd())),
        }
    }

    async fn when_writable(
        &self,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match self.try_io(Interest::WRITABLE, &mut write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => match self {
                    Self::Tls(tunnel) => return tunnel.outcome(outcome),
                    _ => return outcome,
                },
            }
        }
    }

    /// Waits until something can be written, at most for [`STALL_TIMEOUT`].
    pub(crate) async fn writable(&self) -> io::Result<()> {
        let writable = async {
            match self {
                Self::Tcp(stream) => stream.writable().await,
                Self::Tls(tunnel) => tunnel.stream.writable().await,
                Self::Unix(stream) => stream.writable().await,
            }
        };
        let stalled = |_| io::Error::new(io::ErrorKind::TimedOut, "the other side takes nothing");
        timeout(STALL_TIMEOUT, writable).await.map_err(stalled)?
    }

    /// Ends the connection in both directions; tasks that wait on it wake up.
    pub(crate) fn shut_down(&self) {
        let socket = match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Tls(tunnel) => tunnel.stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        };
        // The connection may have ended already.
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], files: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            files.extend(received);
        }
    }
    Ok(message.bytes)
}
