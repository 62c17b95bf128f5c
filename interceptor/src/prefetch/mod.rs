//! What to fetch before it is asked for.
//!
//! Pure policy: it is told of reads and answers with ranges or files; fetching them is the reader's work. Each looks for one kind
//! of order:
//!
//! * [`Streams`], within a file: readers that go forward ([`stream`]), and readers that take equal steps, forward or
//!   backward ([`stride`]).
//! * [`Walks`], among the small files of a directory: readers that follow the order of its listing, which is that of the
//!   names' bytes, so that who sorts the names is seen too.
//! * [`Epochs`], among the small files of a mount: jobs that read the same files again and again, in the same order or not.
//!
//! A guess is paid back in a [`PrefetchStats`]: the cache tells it, for each block, whether a reader came for it, and
//! who guessed wrong guesses less.

mod epoch;
mod stats;
mod stream;
mod stride;
#[cfg(test)]
mod tests;
mod walk;
mod window;

pub use epoch::Epochs;
pub use stats::PrefetchStats;
pub use stream::{AccessPattern, ReadAhead, StreamAdvice, Streams};
pub use walk::Walks;
