//! What a program says on its standard streams.
//!
//! Results of a command go to standard output and are waited for ([`print`]): a command whose result cannot be
//! written has failed. Everything else ([`announce`], [`note`], [`error`]) holds nobody up and cannot fail.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use crate::lines::{Descriptor, LineWriter};

/// How long a program that ends waits for its last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

static STDOUT: OnceLock<LineWriter> = OnceLock::new();
static STDERR: OnceLock<LineWriter> = OnceLock::new();

/// The result of a command could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
pub struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader has closed the pipe, as `head` does: nobody is left to be told.
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

/// Says a line on standard output for whoever waits for it.
pub fn announce(line: impl Display) {
    let stdout = STDOUT
        .get_or_init(|| LineWriter::start(Descriptor(rustix::stdio::stdout()), Box::new(|_| Vec::new())));
    stdout.write(format!("{line}\n").as_bytes());
}

/// Says a line on standard error.
pub fn note(line: impl Display) {
    stderr(Box::new(|lost| format!("({lost} lines were lost)\n").into_bytes()))
        .write(format!("{line}\n").as_bytes());
}

/// Says on standard error why a program fails.
pub fn error(text: impl Display) {
    note(format_args!("error: {text}"));
}

/// Prints what the parser of the command line has to say, help or an error, and gives the exit code.
pub fn explain_usage(said: &clap::Error) -> ExitCode {
    let printed = said.print();
    let code = u8::try_from(said.exit_code()).unwrap_or(2);
    // Help that could not be printed is a failure. After an error the code tells all the same.
    if code == 0 && printed.is_err() { ExitCode::FAILURE } else { ExitCode::from(code) }
}

/// Standard error. The first call decides how it tells of lost lines.
pub(crate) fn stderr(lost_line: Box<dyn Fn(u64) -> Vec<u8> + Send>) -> &'static LineWriter {
    STDERR.get_or_init(|| LineWriter::start(Descriptor(rustix::stdio::stderr()), lost_line))
}

/// How many lines for standard error were lost.
pub fn lost_lines() -> u64 {
    STDERR.get().map_or(0, LineWriter::lost)
}

/// Waits for a moment until what was announced, noted and logged is written.
pub fn flush() {
    for writer in [&STDOUT, &STDERR] {
        if let Some(writer) = writer.get() {
            writer.flush(FLUSH_TIMEOUT);
        }
    }
}

/// Calls [`flush`] when it is dropped: for the end of `main`, also by a panic.
#[must_use]
pub struct FlushOnDrop;

impl Drop for FlushOnDrop {
    fn drop(&mut self) {
        flush();
    }
}
