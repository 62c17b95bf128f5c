//! Reads an operator's files, with limits: the path may lead to a file without end, or to a pipe
//! that nobody writes to.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The most bytes of such a file.
const MAX_SIZE: u64 = 1 << 20;

/// How long a pipe may take.
const PIPE_TIMEOUT: Duration = Duration::from_secs(5);

/// The text of a file; a pipe is read to its end.
///
/// # Errors
/// When the file cannot be read, is no UTF-8 text, or has more than 1 MiB; when a pipe does not end
/// within five seconds.
pub fn read(path: &Path) -> io::Result<String> {
    // Without the flag, opening a pipe waits for somebody who writes to it.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut text = String::new();
    FileInTime { file, until: Instant::now() + PIPE_TIMEOUT }.take(MAX_SIZE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(text)
}

/// A file whose reads wait for data, until a time.
struct FileInTime {
    file: File,
    until: Instant,
}

impl Read for FileInTime {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A pipe that nobody has opened for writing yet seems to be at its end.
        let mut waited = [PollFd::new(&self.file, PollFlags::IN)];
        let left = self.until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
        if poll(&mut waited, Some(&left))? == 0 {
            return Err(io::Error::new(ErrorKind::TimedOut, "nobody has written to the pipe in time"));
        }
        (&self.file).read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_read_to_its_end_if_it_has_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let began = Instant::now();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(began.elapsed() >= PIPE_TIMEOUT);
        let writer = {
            let path = path.clone();
            std::thread::spawn(move || std::fs::write(path, "text"))
        };
        assert_eq!(read(&path).unwrap(), "text");
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_file_without_end_is_refused() {
        assert_eq!(read(Path::new("/dev/zero")).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read(Path::new("/dev/null")).unwrap(), "");
        assert!(read(Path::new("/")).is_err());
        assert!(read(Path::new(file!()).file_name().unwrap().as_ref()).is_err(), "there is none here");
    }
}
