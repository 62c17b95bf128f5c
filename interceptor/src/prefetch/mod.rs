//! What to fetch before it is asked for.
//!
//! Pure policy: it is told of reads and answers with ranges; fetching them is the reader's work.

mod stream;
mod walk;

pub use stream::{Advice, Streams};
pub use walk::Walks;
