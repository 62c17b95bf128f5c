//! Output on the standard streams.
//!
//! Results of a command go to standard output synchronously ([`print`]): a command whose result
//! cannot be written has failed. All other output ([`announce`], [`note`], [`error`]) never blocks
//! and cannot fail.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lines::{Descriptor, LineWriter};

/// How long a program that ends waits for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDOUT: OnceLock<LineWriter> = OnceLock::new();
static STDERR: OnceLock<LineWriter> = OnceLock::new();

/// The error that the result of a command could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader has closed the pipe, as `head` does. Then no message is needed.
    pub fn is_closed(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

/// Writes a part of a command's result to standard output, as a whole and at once.
///
/// # Errors
/// When it cannot be written, by a closed pipe or a full disk.
pub fn print(text: impl Display) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// Writes a line to standard output, for a program or person that waits for it.
pub fn announce(line: impl Display) {
    let stdout = STDOUT
        .get_or_init(|| LineWriter::start(Descriptor(rustix::stdio::stdout()), Box::new(|_| Vec::new())));
    stdout.write(format!("{line}\n").as_bytes());
}

/// Writes a line to standard error, or several. Names of files and answers of servers may be in it,
/// so what a terminal would act on is replaced.
pub fn note(line: impl Display) {
    let shown =
        |letter| if is_harmful(letter) && !matches!(letter, '\n' | '\t') { '\u{fffd}' } else { letter };
    let line: String = format!("{line}\n").chars().map(shown).collect();
    stderr(Box::new(|lost| format!("({lost} lines were lost)\n").into_bytes())).write(line.as_bytes());
}

/// Whether a terminal does more than show the letter: it is a control character, or changes the
/// direction of reading.
pub fn is_harmful(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes to standard error why the program fails.
pub fn error(text: impl Display) {
    note(format_args!("error: {text}"));
}

/// Prints the message of the command line's parser, help or an error. Returns the exit code.
pub fn explain_usage(message: &clap::Error) -> ExitCode {
    let printed = message.print();
    let code = u8::try_from(message.exit_code()).unwrap_or(2);
    // Help that cannot be printed is a failure. An error has its exit code in any case.
    if code == 0 && printed.is_err() { ExitCode::FAILURE } else { ExitCode::from(code) }
}

/// The writer of standard error. The first call decides how lost lines are reported.
pub(crate) fn stderr(lost_line: Box<dyn Fn(u64) -> Vec<u8> + Send>) -> &'static LineWriter {
    STDERR.get_or_init(|| LineWriter::start(Descriptor(rustix::stdio::stderr()), lost_line))
}

/// Writes a line to standard error at once. It is lost if that would block, or fails.
pub(crate) fn write_if_possible(line: &[u8]) {
    let stderr = rustix::stdio::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut ready, Some(&Timespec::default())) == Ok(1) {
        let _ = rustix::io::write(stderr, line);
    }
}

/// How many lines for standard error were lost.
pub fn lost_lines() -> u64 {
    STDERR.get().map_or(0, LineWriter::lost)
}

/// Waits until all queued lines are written, for at most [`FLUSH_TIMEOUT`].
pub fn flush() {
    for writer in [&STDOUT, &STDERR] {
        if let Some(writer) = writer.get() {
            writer.flush(FLUSH_TIMEOUT);
        }
    }
}

/// Calls [`flush`] when it is dropped: at the end of `main`, also after a panic.
#[must_use]
pub struct FlushOnDrop;

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}
