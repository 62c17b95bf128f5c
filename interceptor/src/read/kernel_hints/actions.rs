//! What the reader does about hot ranges and read-ahead hints.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::deferred::READER_IDLE_TIMEOUT;
use crate::cache::resident::PromotionReason;
use crate::read::block_plan::{self, BlockRange, ObjectAccess};
use crate::read::data::ReadData;
use crate::read::layout::{Object, Segment};
use crate::read::{FileVersion, Reader};
use crate::telemetry::Trigger;

impl Reader {
    /// Reports that applications read `range` of `file` again and again, wherever the bytes came
    /// from. Ranges beyond the end are cut off. Starts what follows from that, and does not wait
    /// for it.
    pub fn hint_hot_range(self: &Arc<Self>, file: &Arc<FileVersion>, range: Range<u64>) {
        let range = range.start..range.end.min(file.size());
        if range.is_empty() || self.resident(file).is_some() {
            return;
        }
        let hints = file.activity().kernel_hints();
        hints.note_hot_range(range.clone());
        self.pauses.note_read();
        hints.deferred.note_reader(Instant::now());
        if hints.deferred.add(range) {
            self.runtime.spawn(use_deferred(Arc::downgrade(self), Arc::downgrade(file)));
        }
    }

    fn use_hot_range(self: &Arc<Self>, file: &Arc<FileVersion>, range: Range<u64>) {
        let end = range.end;
        if file.activity().note_hot(end - range.start) && self.consider(file, PromotionReason::Reread) {
            return;
        }
        // Whatever read the file has had its layout resolved, unless it read another version.
        let Some(layout) = file.layout_now() else { return };
        for segment in layout.segments(range.start, end) {
            if let Segment::Object { index, range } = segment {
                let object = &layout.object(index);
                block_plan::plan_large(object, &range).for_each(|part| self.keep_hot(file, object, &part));
            }
        }
    }

    /// Promotes a block in the cache's ranking, or pieces that hold the same; fetches the block
    /// before if these are absent and there is room.
    fn keep_hot(self: &Arc<Self>, file: &FileVersion, object: &Object, part: &BlockRange) {
        let key = part.key;
        if self.cache.contains(&key) {
            self.cache.mark_hot(&key);
            return;
        }
        if file.activity().holds(object, part) {
            return;
        }
        let range = block_plan::range_in_object(object, part);
        if let Some(pieces) = block_plan::cached_pieces_of(&self.cache, object, &range) {
            pieces.iter().for_each(|piece| self.cache.mark_hot(&piece.key));
            return;
        }
        if self.loader.is_absent(&key) && !self.prefetcher.fetch_hot_block(file, object, key) {
            return;
        }
        let Some(outcome) = self.loader.inflight(&key) else {
            // The fetch is over by now.
            self.cache.mark_hot(&key);
            return;
        };
        let cache = self.cache.clone();
        self.runtime.spawn(async move {
            if outcome.await.is_ok() {
                cache.mark_hot(&key);
            }
        });
    }

    /// All bytes of `range` of `file`, which must not reach beyond its end, if the cache has them.
    /// The blocks count as read; the metrics count no read.
    pub fn cached_range(&self, file: &FileVersion, range: &Range<u64>) -> Option<ReadData> {
        let layout = file.layout_now()?;
        let resident = file.activity().resident();
        let len = (range.end - range.start) as usize;
        if let Some(data) = resident.and_then(|resident| ReadData::resident(&resident, range.start, len)) {
            return Some(data);
        }
        let mut parts = Vec::with_capacity(1);
        for segment in layout.segments(range.start, range.end) {
            match segment {
                Segment::Inline(bytes) => parts.push(ReadData::shared(bytes)),
                Segment::Zeros(len) => parts.push(ReadData::zeros(len)),
                Segment::Object { index, range } => {
                    for part in block_plan::plan_large(&layout.object(index), &range) {
                        let block = self.cache.get(&part.key)?;
                        block.mark_read(&part.range);
                        parts.push(ReadData::block(block, part.range));
                    }
                }
            }
        }
        Some(ReadData::join(parts))
    }

    /// Reports a sequential reader of `file` that has come to byte `head` and is expected to read
    /// `window` next, which may reach beyond the end. Starts to fetch the part of it that the
    /// kernel has never asked for.
    pub fn hint_stream(self: &Arc<Self>, file: &Arc<FileVersion>, head: u64, window: Range<u64>) {
        self.pauses.note_read();
        file.activity().kernel_hints().deferred.note_reader(Instant::now());
        let max_window = self.prefetcher.max_window;
        let end = window.end.min(file.size()).min(window.start.saturating_add(max_window));
        let activity = file.activity();
        let (Some(layout), Some(streams)) = (file.layout_now(), activity.streams()) else { return };
        if self.resident(file).is_some() {
            return;
        }
        let window = streams.lock().unseen(head, window.start..end);
        let stats = activity.kernel_hints().stats();
        if window.is_empty() || stats.wastes_more_than(max_window) {
            return;
        }
        let observer = self.prefetcher.reporter(Trigger::KernelStream, stats);
        // Without room, the streams of the file make up for it as soon as the kernel asks.
        let _ = self.prefetcher.fetch_range(file, layout, &window, ObjectAccess::Sequential, &observer);
    }
}

/// Uses the deferred hot ranges of a file as soon as no reader is active.
async fn use_deferred(reader: Weak<Reader>, file: Weak<FileVersion>) {
    loop {
        tokio::time::sleep(READER_IDLE_TIMEOUT).await;
        let (Some(reader), Some(file)) = (reader.upgrade(), file.upgrade()) else { return };
        let deferred = &file.activity().kernel_hints().deferred;
        if !deferred.is_read(Instant::now()) {
            let ranges = deferred.take();
            if reader.resident(&file).is_none() {
                ranges.into_iter().for_each(|range| reader.use_hot_range(&file, range));
            }
            return;
        }
    }
}
