//! What to make of reads that the daemon did not hear of, because the kernel answered them: eBPF tells of them.
//!
//! **Hot**: bytes that applications read again and again out of the page cache will be asked for again once it has to let go of them. If they
//! make about half of their file, the file is worth being resident; otherwise the chunks that hold them are brought to the cache and
//! ranked there as if they had just been read again, once for each time that they turn hot. If the kernel asks for one of them
//! all the same, it is given all of it at once ([`FileVersion::take_hot`]). To bring anything is [put off](super::put_off) while the file is read front to back by way of the daemon.
//!
//! **Ahead**: somebody reads a file front to back, and the page cache has had it all so far. What comes next and has never been
//! asked for is fetched before the kernel asks; from then on the file's own streams follow. As the page cache may have it
//! after all, from reads in no order, this stops for a file where it was in vain.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::data::{Data, Segment};
use super::grain::{self, Access};
use super::put_off::QUIET;
use super::{FileVersion, Reader};
use crate::cache::BlockKey;
use crate::cache::resident::Worth;
use crate::seaweed::entry::Chunk;
use crate::telemetry::Trigger;

impl Reader {
    /// Applications read `range` of `file` again and again, wherever the bytes came from. Ranges beyond the end are cut off. Starts what
    /// follows from that, and does not wait for it.
    pub fn hot(self: &Arc<Self>, file: &Arc<FileVersion>, range: Range<u64>) {
        let range = range.start..range.end.min(file.size());
        if range.is_empty() || self.resident(file).is_some() {
            return;
        }
        file.note_hot_range(range.clone());
        if !file.put_off.is_streamed(Instant::now()) {
            return self.hot_now(file, range);
        }
        if file.put_off.add(range) {
            self.runtime.spawn(when_read(Arc::downgrade(self), Arc::downgrade(file)));
        }
    }

    fn hot_now(self: &Arc<Self>, file: &Arc<FileVersion>, range: Range<u64>) {
        let end = range.end;
        if file.note_hot(end - range.start) && self.consider(file, Worth::ReadAgain) {
            return;
        }
        // Who has read it has had the layout resolved, unless it was another version's reader.
        let Some(layout) = file.layout_now() else { return };
        for segment in layout.segments(range.start, end) {
            if let Segment::Chunk { index, range } = segment {
                let chunk = layout.chunk(index);
                grain::large_blocks(chunk, &range).for_each(|key| self.keep_hot(file, chunk, key));
            }
        }
    }

    /// Keeps a block as one that is hot; fetches it if it is not there and there is room.
    fn keep_hot(self: &Arc<Self>, file: &FileVersion, chunk: &Chunk, key: BlockKey) {
        if self.cache.contains(&key) {
            self.cache.promote(&key);
            return;
        }
        if self.is_wanted(&key) && !self.start(chunk, key, &self.hot, Some(file.interest()), ()) {
            return;
        }
        let Some(outcome) = self.flights.outcome(&key) else {
            // It was faster than we.
            self.cache.promote(&key);
            return;
        };
        let cache = self.cache.clone();
        self.runtime.spawn(async move {
            if outcome.await.is_ok() {
                cache.promote(&key);
            }
        });
    }

    /// All bytes of `range` of `file`, which must not reach beyond its end, if the cache has them. They count as read, but not as a read.
    pub fn held(&self, file: &FileVersion, range: &Range<u64>) -> Option<Data> {
        let layout = file.layout_now()?;
        let mut parts = Vec::with_capacity(1);
        for segment in layout.segments(range.start, range.end) {
            match segment {
                Segment::Bytes(bytes) => parts.push(Data::shared(bytes)),
                Segment::Zeros(len) => parts.push(Data::zeros(len)),
                Segment::Chunk { index, range } => {
                    for located in grain::locate_large(layout.chunk(index), &range) {
                        let block = self.cache.get(&located.key)?;
                        block.mark_read(&located.range);
                        parts.push(Data::block(block, located.range));
                    }
                }
            }
        }
        Some(Data::join(parts))
    }

    /// Somebody reads `file` front to back, has come to byte `head`, and is expected to want `window` next, which may reach beyond the end.
    /// Starts to fetch what of it the kernel has never asked for.
    pub fn ahead(self: &Arc<Self>, file: &Arc<FileVersion>, head: u64, window: Range<u64>) {
        let window =
            window.start..window.end.min(file.size()).min(window.start.saturating_add(self.max_window));
        let (Some(layout), Some(streams)) = (file.layout_now(), file.streams()) else { return };
        if self.resident(file).is_some() {
            return;
        }
        let window = streams.lock().unseen(head, window);
        let ledger = file.seen_ahead();
        if window.is_empty() || ledger.disappoints(self.max_window) {
            return;
        }
        let (outcome, interest) = (self.outcome(Trigger::Seen, ledger), file.interest());
        for segment in layout.segments(window.start, window.end) {
            if let Segment::Chunk { index, range } = segment
                && !self.fetch_ahead(
                    layout.chunk(index),
                    &range,
                    Access::Sequential,
                    &outcome,
                    Some(&interest),
                )
            {
                return;
            }
        }
    }
}

/// Does what was put off about a file when nobody reads it front to back any more.
async fn when_read(reader: Weak<Reader>, file: Weak<FileVersion>) {
    loop {
        tokio::time::sleep(QUIET).await;
        let (Some(reader), Some(file)) = (reader.upgrade(), file.upgrade()) else { return };
        if !file.put_off.is_streamed(Instant::now()) {
            let put_off = file.put_off.take();
            if reader.resident(&file).is_none() {
                put_off.into_iter().for_each(|range| reader.hot_now(&file, range));
            }
            return;
        }
    }
}
