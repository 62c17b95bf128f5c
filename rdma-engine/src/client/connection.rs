//! One session with an engine, from the side of those who ask.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::demultiplexer::{Arrival, Granted, Region, demultiplex};
use super::lease::{BootTime, Lease};
use super::rdma::Rdma;
use super::volume_file::{MAX_WAITING, VolumeFile};
use super::{Delivered, Destination, ReadError, ReadTarget, destination};
use crate::checksum;
use crate::needle::{HEADER, Header};
use crate::protocol::{ClientMessage, NeedleInfo, ReadRequest, SessionLimits, Transport};
use crate::transport::{Incoming, Socket, aside};

/// Data is taken and added to the checksum in pieces of so many bytes, which the processor's cache still has.
const PIECE: usize = 256 << 10;

/// Work on so many bytes or more is done with the other tasks of the thread moved elsewhere.
const LARGE: usize = 128 << 10;

/// An engine from which nothing came for so long, while it was asked for something, hangs.
const SILENCE: Duration = Duration::from_millis(100);

/// When so many bytes of requests wait to be taken by the engine, it hangs.
const MOST_UNSENT: usize = 1 << 20;

pub(super) struct Connection {
    socket: Arc<Socket>,
    transport: Transport,
    /// What the bytes come by, over verbs.
    rdma: Option<Rdma>,
    limits: SessionLimits,
    places: Arc<Semaphore>,
    /// Of threads that wait for a disk.
    waiting_reads: Arc<Semaphore>,
    /// The engine has handed over what cannot be a volume's file.
    has_unfit_files: AtomicBool,
    next: AtomicU64,
    /// Counts whatever comes: an engine that answers anybody is alive.
    pub(super) heard: AtomicU64,
    waiting: Mutex<Waiting>,
    unsent: Mutex<BytesMut>,
    flush: Arc<Notify>,
}

/// Who waits for an answer, by the number of the request.
#[derive(Default)]
struct Waiting {
    requests: HashMap<u64, Waiter>,
    /// Why the connection has ended, if it has.
    end: Option<String>,
}

/// Who waits for one answer, if it still does. The place is taken until the answer is there, wanted or not.
pub(super) struct Waiter {
    pub(super) arrival: oneshot::Sender<Arrival>,
    pub(super) place: Place,
}

/// What a request takes until it is answered, and until what was granted is given back.
pub(super) struct Place {
    /// Of the requests that the engine allows to be in progress.
    _request: OwnedSemaphorePermit,
    /// Of those that go by message: this one does.
    message: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// How the request went, and what follows it goes.
    pub(super) fn way(&self) -> Way {
        if self.message.is_some() { Way::Message } else { Way::Stream }
    }
}

/// How a request goes to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Over the connection of the bootstrap.
    Stream,
    /// Over the queue pair.
    Message,
}

impl Connection {
    /// Begins to take answers from `incoming`.
    pub(super) fn start(
        incoming: Incoming,
        transport: Transport,
        rdma: Option<Rdma>,
        limits: SessionLimits,
    ) -> Arc<Self> {
        let connection = Arc::new(Self {
            socket: incoming.socket().clone(),
            transport,
            rdma,
            limits,
            places: Arc::new(Semaphore::new((limits.in_flight as usize).min(Semaphore::MAX_PERMITS))),
            waiting_reads: Arc::new(Semaphore::new(MAX_WAITING)),
            has_unfit_files: AtomicBool::new(false),
            next: AtomicU64::new(1),
            heard: AtomicU64::new(0),
            waiting: Mutex::default(),
            unsent: Mutex::default(),
            flush: Arc::default(),
        });
        if let Some(rdma) = &connection.rdma
            && !rdma.listen(&Arc::downgrade(&connection))
        {
            connection.close("the queue pair takes no messages");
        }
        // Both tasks end when the connection does, and that is when nobody holds it any more or the engine is gone.
        tokio::spawn(demultiplex(incoming, Arc::downgrade(&connection)));
        tokio::spawn(flush(Arc::downgrade(&connection), connection.socket.clone()));
        connection
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    #[cfg(feature = "verbs")]
    pub(super) fn rdma(&self) -> Option<&Rdma> {
        self.rdma.as_ref()
    }

    pub(super) fn limits(&self) -> &SessionLimits {
        &self.limits
    }

    pub(super) fn is_open(&self) -> bool {
        self.waiting.lock().end.is_none() && !self.rdma.as_ref().is_some_and(Rdma::is_broken)
    }

    /// Whether RDMA does not lead to the engine, though it was offered.
    pub(super) fn is_unreachable(&self) -> bool {
        self.rdma.as_ref().is_some_and(Rdma::is_unreachable)
    }

    /// Whether the engine has handed over what cannot be a volume's file.
    pub(super) fn has_unfit_files(&self) -> bool {
        self.has_unfit_files.load(Ordering::Relaxed)
    }

    /// Takes a file that the engine has handed over.
    pub(super) async fn take_file(&self, descriptor: OwnedFd) -> io::Result<Arc<VolumeFile>> {
        let taken = VolumeFile::take(descriptor, &self.waiting_reads).await;
        if let Err(error) = &taken {
            tracing::warn!(%error, "an engine hands over what is no volume's file");
            self.has_unfit_files.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Why the connection has ended, if it has.
    pub(super) fn end(&self) -> Option<String> {
        let broken = || self.rdma.as_ref().filter(|rdma| rdma.is_broken());
        let end = self.waiting.lock().end.clone();
        end.or_else(|| broken().map(|_| "the queue pair has failed".to_owned()))
    }

    /// Ends the connection. Those who wait are told.
    pub(super) fn close(&self, reason: &str) {
        let mut waiting = self.waiting.lock();
        if waiting.end.is_none() {
            waiting.end = Some(reason.to_owned());
            waiting.requests.clear();
            self.socket.shut_down();
            self.flush.notify_one();
            drop(waiting);
            if let Some(rdma) = &self.rdma {
                rdma.abort();
            }
        }
    }

    /// Takes out who waits for the answer to a request.
    pub(super) fn waiter(&self, number: u64) -> Option<Waiter> {
        self.waiting.lock().requests.remove(&number)
    }

    pub(super) async fn read(
        self: &Arc<Self>,
        target: ReadTarget<'_>,
        destination: &mut [u8],
        deadline: Instant,
    ) -> Result<Delivered, ReadError> {
        self.within(deadline, async {
            let (arrival, asked) = self.asked(&target, destination.len()).await?;
            self.fill(arrival, asked, &target, destination).await
        })
        .await
    }

    /// As `read`, into memory that is lent to the device where it is registered. It comes back unless the device still had it.
    pub(super) async fn read_owned<D: Destination>(
        self: &Arc<Self>,
        target: ReadTarget<'_>,
        memory: D,
        deadline: Instant,
    ) -> (Result<Delivered, ReadError>, Option<D>) {
        let mut kept = Some(Box::new(memory));
        let outcome = self
            .within(deadline, async {
                let length = kept.as_ref().map_or(0, |memory| memory.length());
                let (arrival, asked) = self.asked(&target, length).await?;
                let region = match (&arrival, &self.rdma, &kept) {
                    (Arrival::Grant(..), Some(rdma), Some(memory)) if length > 0 => rdma.region(&**memory),
                    _ => None,
                };
                match (arrival, &self.rdma, region) {
                    (Arrival::Grant(needle, granted), Some(rdma), Some(region)) if needle.length > 0 => {
                        check(&needle, &target, length)?;
                        let Some(memory) = kept.take() else { return Err(ReadError::Lost(String::new())) };
                        let length = needle.length as usize;
                        let fetched = rdma.fetch_into(&granted.grant, length, memory, &region);
                        let memory: Box<dyn Any> = self.leased(&granted, asked, fetched).await?;
                        let mut memory =
                            memory.downcast::<D>().map_err(|_| ReadError::Lost(String::new()))?;
                        // Before the checksum: the engine needs its memory.
                        drop(granted);
                        let bytes = &destination::bytes(&mut *memory)[..needle.length as usize];
                        let verified = verified(&needle, bytes);
                        kept = Some(memory);
                        Ok(Delivered { needle, verified: verified?, transport: Transport::Verbs })
                    }
                    (arrival, ..) => {
                        let bytes = kept.as_mut().map(|memory| destination::bytes(&mut **memory));
                        self.fill(arrival, asked, &target, bytes.unwrap_or_default()).await
                    }
                }
            })
            .await;
        (outcome, kept.map(|memory| *memory))
    }

    /// Asks for `length` bytes. Returns what came, and a time before it was asked for.
    async fn asked(
        self: &Arc<Self>,
        target: &ReadTarget<'_>,
        length: usize,
    ) -> Result<(Arrival, BootTime), ReadError> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        if length > self.limits.read {
            return Err(ReadError::Refused(crate::Refusal::TooLong));
        }
        let token = target.token.unwrap_or_default().as_bytes().to_vec();
        let request =
            ClientMessage::Read(ReadRequest { fid: target.fid, offset: target.offset, length, token });
        let asked = self.ask(&request).await?;
        let when = asked.at;
        Ok((asked.arrival().await?, when))
    }

    /// Fills `destination` with what has come, or comes behind it.
    async fn fill(
        &self,
        arrival: Arrival,
        asked: BootTime,
        target: &ReadTarget<'_>,
        destination: &mut [u8],
    ) -> Result<Delivered, ReadError> {
        let (needle, verified) = match arrival {
            Arrival::Refused(refusal) => return Err(ReadError::Refused(refusal)),
            Arrival::Pong => return Err(ReadError::Lost("a pong for data".to_owned())),
            Arrival::Data(needle, mut body) => {
                let destination = expected(&needle, target, destination)?;
                let mut crc = 0;
                let mut filled = 0;
                while filled < destination.len() {
                    let end = destination.len().min(filled + PIECE);
                    let count = body.read(&mut destination[filled..end]).await?;
                    crc = checksum::crc32c_append(crc, &destination[filled..filled + count]);
                    filled += count;
                    self.heard.fetch_add(1, Ordering::Relaxed);
                }
                (needle, verify(&needle, crc)?)
            }
            Arrival::Message(needle, data) => {
                let destination = expected(&needle, target, destination)?;
                destination.copy_from_slice(&data);
                let verified = verified(&needle, destination)?;
                return Ok(Delivered { needle, verified, transport: Transport::Verbs });
            }
            Arrival::File(needle, region) => {
                let destination = expected(&needle, target, destination)?;
                let crc = take(&region, &needle, destination).await?;
                (needle, verify(&needle, crc)?)
            }
            Arrival::Grant(needle, granted) => {
                let destination = expected(&needle, target, destination)?;
                // A grant comes only where there is a queue pair.
                let Some(rdma) = &self.rdma else { return Err(ReadError::Lost("a grant".to_owned())) };
                let crc = self.leased(&granted, asked, rdma.fetch(&granted.grant, destination)).await?;
                return Ok(Delivered {
                    needle,
                    verified: verify(&needle, crc)?,
                    transport: Transport::Verbs,
                });
            }
        };
        // What a session over verbs gets in the stream, it gets by TCP.
        let transport = if self.rdma.is_some() { Transport::Tcp } else { self.transport };
        Ok(Delivered { needle, verified, transport })
    }

    /// Fetches what was granted. What has not come within the lease may be something else.
    async fn leased<T>(
        &self,
        granted: &Granted,
        asked: BootTime,
        fetched: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        let lease = Lease::new(asked, Duration::from_millis(granted.grant.lease_ms.into()));
        let outcome = timeout(lease.left(BootTime::now()).unwrap_or_default(), fetched).await;
        match outcome {
            // The timer stops while the host is suspended.
            Ok(Ok(fetched)) if lease.left(BootTime::now()).is_some() => Ok(fetched),
            Ok(Err(error)) => {
                match &error {
                    ReadError::Lost(reason) => self.close(reason),
                    other => self.close(&other.to_string()),
                }
                Err(error)
            }
            _ => Err(ReadError::Damaged("the lease was over before the bytes had come")),
        }
    }

    /// Tells the engine that what it granted is not needed any more.
    pub(super) fn done(&self, number: u64, way: Way) {
        self.send(&ClientMessage::Done, number, way);
    }

    pub(super) async fn ping(self: &Arc<Self>, deadline: Instant) -> Result<Duration, ReadError> {
        self.within(deadline, async {
            let began = Instant::now();
            match self.ask(&ClientMessage::Ping).await?.arrival().await? {
                Arrival::Pong => Ok(began.elapsed()),
                Arrival::Refused(refusal) => Err(ReadError::Refused(refusal)),
                _ => Err(ReadError::Lost("data for a ping".to_owned())),
            }
        })
        .await
    }

    /// Waits for `work`. An engine from which nothing at all came until the deadline is given up, unless that was very soon.
    async fn within<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        let (began, heard) = (Instant::now(), self.heard.load(Ordering::Relaxed));
        match timeout_at(deadline, work).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if began.elapsed() >= SILENCE && self.heard.load(Ordering::Relaxed) == heard {
                    self.close("the engine did not answer in time");
                }
                Err(ReadError::Deadline)
            }
        }
    }

    async fn ask(self: &Arc<Self>, request: &ClientMessage) -> Result<Asked, ReadError> {
        let request_place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let place = Place { _request: request_place, message: self.rdma.as_ref().and_then(Rdma::place) };
        let way = place.way();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, arrival) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if let Some(end) = &waiting.end {
                return Err(ReadError::Lost(end.clone()));
            }
            waiting.requests.insert(number, Waiter { arrival: sender, place });
        }
        let at = BootTime::now();
        self.send(request, number, way);
        Ok(Asked { connection: self.clone(), number, way, at, arrival: Some(arrival) })
    }

    /// Sends a request, or leaves to another task what the socket does not take at once. What the queue pair has no room for goes to the socket, too.
    fn send(&self, request: &ClientMessage, number: u64, way: Way) {
        if let (Way::Message, Some(rdma)) = (way, &self.rdma) {
            let mut message = BytesMut::new();
            request.encode(number, &mut message);
            if rdma.send(&message) {
                return;
            }
        }
        let mut unsent = self.unsent.lock();
        let idle = unsent.is_empty();
        request.encode(number, &mut unsent);
        if idle && !write_some(&self.socket, &mut unsent).unwrap_or(true) {
            // An error shows on the reading side.
            self.flush.notify_one();
        }
        if unsent.len() > MOST_UNSENT {
            drop(unsent);
            self.close("the engine takes no requests");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.socket.shut_down();
        self.flush.notify_one();
    }
}

/// Writes what is in `bytes` as far as the socket takes it. Returns whether that was all.
fn write_some(socket: &Socket, bytes: &mut BytesMut) -> io::Result<bool> {
    while !bytes.is_empty() {
        match socket.try_write(bytes) {
            Ok(count) => bytes.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                bytes.clear();
                return Err(error);
            }
        }
    }
    Ok(true)
}

/// Sends what could not be sent at once.
async fn flush(connection: std::sync::Weak<Connection>, socket: Arc<Socket>) {
    loop {
        let Some(strong) = connection.upgrade() else { return };
        if strong.end().is_some() {
            return;
        }
        let all = write_some(&socket, &mut strong.unsent.lock());
        let more = strong.flush.clone();
        // The connection must not live on because this task waits for something to do.
        drop(strong);
        match all {
            Ok(true) => more.notified().await,
            Ok(false) if socket.writable().await.is_ok() => {}
            _ => return,
        }
    }
}

/// A request that was sent. Dropping it tells the engine that nobody waits.
struct Asked {
    connection: Arc<Connection>,
    number: u64,
    way: Way,
    /// Before it was sent.
    at: BootTime,
    arrival: Option<oneshot::Receiver<Arrival>>,
}

impl Asked {
    async fn arrival(mut self) -> Result<Arrival, ReadError> {
        let arrival = self.arrival.as_mut().expect("taken only here");
        let arrived = match (self.way, &self.connection.rdma) {
            (Way::Message, Some(rdma)) => rdma.answer(arrival).await,
            _ => arrival.await,
        };
        self.arrival = None;
        arrived.map_err(|_| ReadError::Lost(self.connection.end().unwrap_or_default()))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.arrival.is_some() {
            self.connection.send(&ClientMessage::Cancel, self.number, self.way);
        }
    }
}

/// The part of `destination` that the answer fills, if the answer is one to the question.
fn expected<'a>(
    needle: &NeedleInfo,
    target: &ReadTarget<'_>,
    destination: &'a mut [u8],
) -> Result<&'a mut [u8], ReadError> {
    check(needle, target, destination.len())?;
    Ok(&mut destination[..needle.length as usize])
}

/// Whether the answer is one to the question for `asked` bytes.
fn check(needle: &NeedleInfo, target: &ReadTarget<'_>, asked: usize) -> Result<(), ReadError> {
    let NeedleInfo { header, data_size, length, .. } = *needle;
    if header.key != target.fid.key || header.cookie != target.fid.cookie {
        return Err(ReadError::Damaged("the header of another needle"));
    }
    let left =
        data_size.checked_sub(target.offset).ok_or(ReadError::Damaged("the range lies behind the end"))?;
    if u64::from(length) != u64::from(left).min(asked as u64) {
        return Err(ReadError::Damaged("more or less bytes than were asked for"));
    }
    Ok(())
}

/// As [`verify`], with the checksum of `bytes`, which is of no use for a part of a needle.
fn verified(needle: &NeedleInfo, bytes: &[u8]) -> Result<bool, ReadError> {
    if needle.length == needle.data_size { verify(needle, checksum::crc32c(bytes)) } else { Ok(false) }
}

/// Compares the checksum of the bytes that were read, if they are the whole needle; says whether they are.
fn verify(needle: &NeedleInfo, crc: u32) -> Result<bool, ReadError> {
    if needle.length != needle.data_size || needle.length == 0 {
        return Ok(false);
    }
    if checksum::matches(needle.checksum, crc) { Ok(true) } else { Err(ReadError::Damaged("the checksum")) }
}

/// Reads data from the volume's file, and the record's header once more: the bytes read are this needle's if the header
/// is still there. Returns the checksum.
async fn take(region: &Region, needle: &NeedleInfo, destination: &mut [u8]) -> Result<u32, ReadError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Damaged("the file was truncated"),
        _ => ReadError::Lost(error.to_string()),
    };
    let (mut crc, mut done) = (0, 0);
    let mut header = [0; HEADER];
    loop {
        // What is in the page cache, all in one go.
        let mut read_cached = || -> io::Result<()> {
            while done < destination.len() {
                let piece = next_piece(destination, done);
                region.file.read_cached(piece, region.position.saturating_add(done as u64))?;
                crc = checksum::crc32c_append(crc, piece);
                done += piece.len();
            }
            region.file.read_cached(&mut header, region.record)
        };
        let outcome = match needle.length as usize >= LARGE && region.file.tells_what_is_cached() {
            true => aside(read_cached),
            false => read_cached(),
        };
        match outcome {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
        // The header comes with the last piece.
        let is_last = done + PIECE >= destination.len();
        let position = region.position.saturating_add(done as u64);
        let piece = next_piece(destination, done);
        let mut parts = [(&mut *piece, position), (&mut header[..], region.record)];
        let count = if is_last { 2 } else { 1 };
        region.file.read_waiting(&mut parts[..count]).await.map_err(failed)?;
        crc = checksum::crc32c_append(crc, piece);
        done += piece.len();
        if is_last {
            break;
        }
    }
    match Header::parse(&header) == needle.header {
        true => Ok(crc),
        false => Err(ReadError::Damaged("the record is not there any more")),
    }
}

/// The next part of `destination` to be read, of which so much is done.
fn next_piece(destination: &mut [u8], done: usize) -> &mut [u8] {
    let end = destination.len().min(done + PIECE);
    &mut destination[done..end]
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;

    use super::*;
    use crate::needle::Flags;

    /// Where the range begins in a file, and where the header that is looked at afterwards.
    const POSITION: usize = 20;
    const RECORD: usize = 3;

    async fn take_from(file: File, whole: &[u8], length: usize) -> Result<Vec<u8>, ReadError> {
        let file = VolumeFile::take(file.into(), &Arc::new(Semaphore::new(1))).await.unwrap();
        let region = Region { file, record: RECORD as u64, position: POSITION as u64 };
        let header = Header::parse(whole[RECORD..RECORD + HEADER].try_into().unwrap());
        let (data_size, length) = (length as u32, length as u32);
        let needle = NeedleInfo { header, data_size, checksum: 0, flags: Flags(0), deleted: false, length };
        let mut bytes = vec![0; length as usize];
        let crc = take(&region, &needle, &mut bytes).await?;
        assert_eq!(crc, checksum::crc32c(&bytes));
        Ok(bytes)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_range_is_read_whether_or_not_its_file_tells_what_is_cached() {
        let directory = tempfile::tempdir().unwrap();
        let written = directory.path().join("1.dat");
        let content: Vec<u8> = (0..3 * PIECE + 7).map(|at| ((at as u32 * 31) >> 3) as u8).collect();
        File::create(&written).unwrap().write_all(&content).unwrap();
        // Of these the file systems do not tell. The second, of several pieces, is not everywhere.
        for path in [written, "/proc/version".into(), "/sys/kernel/btf/vmlinux".into()] {
            let Ok(whole) = fs::read(&path) else { continue };
            for length in [0, 1, PIECE, PIECE + 1, 3 * PIECE - POSITION] {
                let Some(expected) = whole.get(POSITION..POSITION + length) else { continue };
                let bytes = take_from(File::open(&path).unwrap(), &whole, length).await.unwrap();
                assert!(bytes == expected, "{} bytes of {}", length, path.display());
            }
            let mut other = whole.clone();
            other[RECORD] ^= 1;
            for (whole, length) in [(&other, 1), (&whole, whole.len())] {
                let outcome = take_from(File::open(&path).unwrap(), whole, length).await;
                assert!(matches!(outcome, Err(ReadError::Damaged(_))), "{outcome:?}");
            }
        }
    }
}
