//! A bounded queue of lines, which a thread of its own writes to a file descriptor.
//!
//! Writing to a pipe or a terminal can block for ever, and fails if the disk is full or the other
//! end is gone. Here only the thread blocks. A line that cannot be written, or for which the queue
//! has no room, is counted as lost.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};

/// Bytes that may wait to be written.
const QUEUE_CAPACITY: usize = 1 << 20;

/// Makes the line that reports this many lost lines.
type LostLine = Box<dyn Fn(u64) -> Vec<u8> + Send>;

/// Queues lines without ever blocking. Cheap to clone.
#[derive(Clone)]
pub struct LineWriter(Arc<LineQueue>);

#[derive(Default)]
struct LineQueue {
    queue: Mutex<Queue>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether the thread is writing a line that it has taken from `lines`.
    is_writing: bool,
}

impl LineWriter {
    /// Starts the thread that writes to `sink`. When a write succeeds again after lines were lost,
    /// the line of `lost_line` is written first.
    pub fn start(sink: impl Write + Send + 'static, lost_line: LostLine) -> Self {
        let shared = Arc::new(LineQueue::default());
        let writer = Writer { shared: shared.clone(), sink, lost_line, reported: 0, is_torn: false };
        // Without a thread the queue fills up, and further lines are counted as lost.
        let _ = thread::Builder::new().name("log".into()).spawn(move || writer.run());
        Self(shared)
    }

    /// Queues `line`, which ends with a newline, to be written as a whole.
    pub fn write(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes + line.len() > QUEUE_CAPACITY {
            self.0.lost.fetch_add(1, Relaxed);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        self.0.changed.notify_all();
    }

    /// How many lines were lost.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// Waits until every line is written or lost, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut queue = self.0.queue.lock();
        while queue.is_writing || !queue.lines.is_empty() {
            if self.0.changed.wait_until(&mut queue, deadline).timed_out() {
                return;
            }
        }
    }
}

struct Writer<W> {
    shared: Arc<LineQueue>,
    sink: W,
    lost_line: LostLine,
    /// How many lost lines have been reported.
    reported: u64,
    /// Whether the last write broke off within a line.
    is_torn: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        // A terminal stops background processes that write to it (`stty tostop`), unless they
        // block this signal.
        let _ = SigSet::from(Signal::SIGTTOU).thread_block();
        loop {
            let line = self.next();
            // The panic itself is logged in a line of its own.
            let write = AssertUnwindSafe(|| self.report_losses().and_then(|()| self.put(&line)));
            if !matches!(catch_unwind(write), Ok(Ok(()))) {
                self.shared.lost.fetch_add(1, Relaxed);
            }
            self.shared.queue.lock().is_writing = false;
            self.shared.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = self.shared.queue.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.is_writing = true;
                return line;
            }
            self.shared.changed.wait(&mut queue);
        }
    }

    fn report_losses(&mut self) -> io::Result<()> {
        let lost = self.shared.lost.load(Relaxed);
        if lost > self.reported {
            let line = (self.lost_line)(lost - self.reported);
            self.put(&line)?;
            self.reported = lost;
        }
        Ok(())
    }

    /// Writes a whole line, after a newline if the last line broke off.
    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.write_all(line)
    }

    fn write_all(&mut self, mut rest: &[u8]) -> io::Result<()> {
        let length = rest.len();
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_torn |= rest.len() < length;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// A standard stream, without the lock of [`io::Stdout`] and [`io::Stderr`], on which other
/// threads could block, and without a buffer.
pub struct Descriptor(pub BorrowedFd<'static>);

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.0, bytes) {
                // Another process that shares the descriptor has made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn started(sink: impl Write + Send + 'static) -> LineWriter {
        LineWriter::start(sink, Box::new(|lost| format!("{lost} lost\n").into_bytes()))
    }

    /// Waits until the thread has written or lost all lines.
    fn wait_until_written(writer: &LineWriter) {
        writer.flush(LIMIT);
        assert!(writer.0.queue.lock().lines.is_empty());
    }

    fn rest_of(mut reader: PipeReader) -> thread::JoinHandle<String> {
        thread::spawn(move || {
            let mut text = String::new();
            let mut part = [0; 4096];
            while !text.ends_with("end\n") {
                let length = reader.read(&mut part).unwrap();
                text += std::str::from_utf8(&part[..length]).unwrap();
            }
            text
        })
    }

    #[test]
    fn an_undrained_pipe_blocks_no_writer() {
        let (reader, sink) = pipe().unwrap();
        let writer = started(sink);
        let line = format!("{}\n", "x".repeat(999));
        let began = Instant::now();
        (0..5000).for_each(|_| writer.write(line.as_bytes()));
        writer.flush(Duration::from_millis(1));
        assert!(began.elapsed() < LIMIT);
        let lost = writer.lost();
        assert!(lost >= 5000 - (QUEUE_CAPACITY / 1000) as u64 - 1000, "{lost}");

        let text = rest_of(reader);
        wait_until_written(&writer);
        writer.write(b"end\n");
        let text = text.join().unwrap();
        assert_eq!(text.matches(&line).count() as u64, 5000 - lost);
        let reported = text.lines().filter_map(|line| line.strip_suffix(" lost")?.parse::<u64>().ok());
        assert_eq!(reported.sum::<u64>(), lost);
        assert_eq!(writer.lost(), lost);
    }

    #[test]
    fn lines_lost_to_a_closed_pipe_or_a_full_disk_are_counted() {
        let (reader, closed) = pipe().unwrap();
        drop(reader);
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        for writer in [started(closed), started(full)] {
            (0..7).for_each(|_| writer.write(b"line\n"));
            wait_until_written(&writer);
            assert_eq!(writer.lost(), 7);
        }
    }

    #[test]
    fn a_non_blocking_pipe_gets_every_line() {
        let (reader, sink) = pipe().unwrap();
        rustix::io::ioctl_fionbio(&sink, true).unwrap();
        let sink: &'static _ = Box::leak(Box::new(sink));
        let writer = started(Descriptor(std::os::fd::AsFd::as_fd(sink)));
        (0..300).for_each(|_| writer.write(&[b'x'; 1000]));
        writer.write(b"end\n");
        assert_eq!(rest_of(reader).join().unwrap().len(), 300_004);
        assert_eq!(writer.lost(), 0);
    }

    /// A disk that is full after each of these numbers of bytes, from the last to the first.
    struct Disk {
        room: Vec<usize>,
        taken: Arc<Mutex<String>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let Some(room) = self.room.last_mut() else {
                self.taken.lock().push_str(std::str::from_utf8(bytes).unwrap());
                return Ok(bytes.len());
            };
            if *room == 0 {
                self.room.pop();
                return Err(ErrorKind::StorageFull.into());
            }
            let length = bytes.len().min(*room);
            *room -= length;
            self.taken.lock().push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_breaks_off_is_ended_before_the_next() {
        let taken = Arc::new(Mutex::new(String::new()));
        let writer = started(Disk { room: vec![0, 5], taken: taken.clone() });
        ["one\n", "two\n", "three\n", "four\n"].iter().for_each(|line| writer.write(line.as_bytes()));
        wait_until_written(&writer);
        assert_eq!(*taken.lock(), "one\nt\n2 lost\nfour\n");
    }
}
