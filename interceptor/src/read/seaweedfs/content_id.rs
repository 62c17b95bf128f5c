//! Identifies the bytes of a file, whatever its name.

use ring::digest::{Context, SHA256};

use crate::cache::resident::ContentId;
use crate::seaweed::entry::{Content, Entry, FileKind};

/// The id of the bytes of `entry`; `None` if it has none, or does not tell which they are.
///
/// Chunks never change under their file ids, so the list of them identifies the bytes. The digest
/// is of whole chunk records, with numbers in full length, so that no two lists have the same
/// input.
pub(super) fn content_id(entry: &Entry) -> Option<ContentId> {
    if entry.attr.kind != FileKind::File || entry.attr.size == 0 {
        return None;
    }
    let mut digest = Context::new(&SHA256);
    digest.update(&entry.attr.size.to_le_bytes());
    match &entry.content {
        Content::Inline(bytes) => {
            digest.update(b"inline");
            digest.update(bytes);
        }
        Content::Chunks(chunks) => {
            digest.update(b"chunks");
            for chunk in chunks.iter() {
                digest.update(&chunk.fid.volume.to_le_bytes());
                digest.update(&chunk.fid.key.to_le_bytes());
                digest.update(&chunk.fid.cookie.to_le_bytes());
                digest.update(&chunk.offset.to_le_bytes());
                digest.update(&chunk.size.to_le_bytes());
                digest.update(&chunk.modified_ts_ns.to_le_bytes());
                digest.update(&[
                    chunk.is_manifest.into(),
                    chunk.is_compressed.into(),
                    chunk.cipher_key.is_some().into(),
                ]);
                digest.update(chunk.cipher_key.as_deref().map_or(&[], |key| key));
            }
        }
        Content::None
        | Content::Remote(_)
        | Content::Target(_)
        | Content::Encrypted { .. }
        | Content::Damaged { .. } => return None,
    }
    let mut id = [0; 32];
    id.copy_from_slice(digest.finish().as_ref());
    Some(ContentId(id))
}
