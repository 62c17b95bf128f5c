//! Predicts what will be read next.
//!
//! Pure policy: predictors are told of reads, and return ranges or files to fetch. The reader
//! fetches them. Each predictor looks for one kind of order:
//!
//! * [`Streams`], within a file: sequential readers ([`stream`]), and strided readers, forward or
//!   backward ([`stride`]).
//! * [`Walks`], among the small files of a directory: readers that follow the order of its
//!   listing. That is the order of the names' bytes, so readers that sort the names are found too.
//! * [`Epochs`], among the small files of a mount: jobs that read the same files again and again,
//!   in the same order or not.
//!
//! The cache counts in the [`PrefetchStats`] of a predictor, for each block, whether a reader used
//! it. A predictor that was wrong predicts less.

mod advice;
mod epoch;
mod stats;
mod stream;
mod stride;
#[cfg(test)]
mod tests;
mod walk;
mod window;

pub use advice::{AccessPattern, ReadAhead, StreamAdvice};
pub use epoch::Epochs;
pub use stats::PrefetchStats;
pub use stream::Streams;
pub use walk::Walks;
