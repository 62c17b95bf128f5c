//! Resident files that are filled as the file is read for the first time.
//!
//! What a sequential reader has passed is in the page cache of the mount, in front of this cache,
//! so its blocks need not be answered from the arena any more. If there is free memory for the
//! whole file, they move to a [`Draft`](crate::cache::resident::Draft) of its resident file while
//! the reader goes on, and the arena's memory, still warm, takes the next blocks. When the reader
//! has come to the end, the file is resident, and the next open is passed through.

use std::sync::Arc;

use super::block_plan;
use super::layout::{FileLayout, Object, Segment};
use super::{FileVersion, MAX_SMALL_FILE_SIZE, Reader};
use crate::cache::BlockKey;

impl Reader {
    /// Begins a draft of `file`, if there is free memory for all of it, and moves the blocks there
    /// that have been read. Small files are promoted whole.
    pub(super) fn begin_draft(&self, file: &Arc<FileVersion>, layout: &FileLayout) {
        let Some(residents) = self.residents().filter(|_| file.size() > MAX_SMALL_FILE_SIZE) else { return };
        let (Some(content), Some(id)) = (content(layout), file.content_id()) else { return };
        let Some(draft) = residents.begin_draft(id, file.size()) else { return };
        file.activity().note_resident(draft.file());
        let content = *file.activity().draft_content().get_or_init(|| content);
        for object in layout.objects() {
            for key in block_plan::large_blocks(&object, &(0..object.size)) {
                if self.cache.get(&key).is_some_and(|block| block.is_read_through()) {
                    draft.move_block(key, object.offset + block_plan::span(&object, key.part).0, content);
                }
            }
        }
    }

    /// Moves a block to the draft of `file`, which is complete with `content` bytes.
    pub(super) fn move_to_draft(&self, file: &FileVersion, object: &Object, key: BlockKey, content: u64) {
        let is_draft = file.activity().resident().is_some_and(|resident| !resident.is_complete());
        if !is_draft || !block_plan::is_large(object, key.part) {
            return;
        }
        let draft = || self.residents()?.find_draft(&file.content_id()?);
        if let Some(draft) = draft() {
            draft.move_block(key, object.offset + block_plan::span(object, key.part).0, content);
        }
    }
}

/// How many bytes of a file its objects hold, if each object shows as a whole.
fn content(layout: &FileLayout) -> Option<u64> {
    let (mut content, mut shown) = (0, 0);
    for segment in layout.segments(0, layout.size()) {
        match segment {
            Segment::Zeros(_) => {}
            Segment::Inline(_) => return None,
            Segment::Object { index, range } => {
                if range != (0..layout.object(index).size) {
                    return None;
                }
                content += range.end;
                shown += 1;
            }
        }
    }
    (shown == layout.object_count()).then_some(content)
}
