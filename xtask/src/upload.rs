//! Writing many files at once.

use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Result;

use crate::interrupt;

/// Files that are written at the same time.
const WRITERS: usize = 4;

/// Calls `write` for each of `items`, on a few threads. The first error, or an interrupt, ends it.
pub(crate) fn each<T: Sync>(items: &[T], write: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = interrupt::check().and_then(|()| write(item)) {
                        next.store(items.len(), Ordering::Relaxed);
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// A stream whose bytes are shown to `seen` on their way. An interrupt ends it with an error.
pub(crate) struct TappedReader<R, F> {
    pub(crate) inner: R,
    pub(crate) seen: F,
}

impl<R: Read, F: FnMut(&[u8])> Read for TappedReader<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if interrupt::requested() {
            return Err(io::Error::other(interrupt::Interrupted));
        }
        let count = self.inner.read(buffer)?;
        (self.seen)(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_written_once_and_the_first_error_ends_it() {
        let items: Vec<u64> = (0..1000).collect();
        let sum = Mutex::new(0);
        each(&items, |item| {
            *sum.lock().unwrap() += item;
            Ok(())
        })
        .unwrap();
        assert_eq!(*sum.lock().unwrap(), 499_500);

        let written = AtomicUsize::new(0);
        let failed = each(&items, |item| {
            anyhow::ensure!(*item != 3, "no room for {item}");
            written.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        assert_eq!(failed.unwrap_err().to_string(), "no room for 3");
        assert!(written.into_inner() < 1000);
    }

    #[test]
    fn a_watcher_sees_what_passes() {
        let mut seen = Vec::new();
        let mut passed = Vec::new();
        TappedReader { inner: &b"content"[..], seen: |part: &[u8]| seen.extend_from_slice(part) }
            .read_to_end(&mut passed)
            .unwrap();
        assert_eq!((seen, passed), (b"content".to_vec(), b"content".to_vec()));
    }
}
