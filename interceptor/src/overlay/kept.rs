//! Versions of files whose only source is the mount below, by what it tells of them.
//!
//! An open for reading asks the mount below afresh, after what programs have mapped and changed there was written back: which file it is, its size, its times of modification and
//! change. If these are [settled](super::coherence), so that another change would show in them, they are the name of the bytes, as a file id of SeaweedFS is: whatever was read under
//! a name, and found to be under the same name still when it had been read, is right under that name for ever. So a version is made like a
//! file of a cluster, of pieces that never change, and the rest is that of [`reader`](crate::read)s: blocks, streams, hot ranges. [`Opened`] brings the bytes.
//!
//! A name has also how often the file was written by way of this layer: a daemon below may let programs set all times.
//! For the same reason, a file of such a daemon has other names once the kernel has forgotten and found it again; one whose times of change a kernel sets keeps its name.
//!
//! Left to the mount below are files without bytes by their size, whose content a daemon may make up as it is read; larger ones than
//! [`LARGEST`]; and for as long as they keep their attributes those of which less could be read than these promise.

use std::sync::Arc;

use ring::digest::{Context, SHA256};
use rustix::fs::FileType;
use tokio::runtime::Handle;

use super::attributes::{Attributes, Stamp};
use super::coherence::{Basis, Quiet, Served};
use super::files::OpenFile;
use super::nodes::Node;
use super::opened::{Opened, State};
use super::tree::Tree;
use crate::cache::{Cache, ObjectId};
use crate::read::{FileLayout, FileVersion, Object, ObjectEncoding, Reader};
use crate::telemetry::Metrics;

/// Files are cut into pieces of this size, which are fetched whole for who reads front to back.
const PIECE: u64 = 4 << 20;

/// The most pieces of a file: those of a larger one are larger, too.
const MOST_PIECES: u64 = 1 << 14;

/// Larger files are left alone. The pieces of this one are of 1 GiB.
const LARGEST: u64 = MOST_PIECES << 30;

/// Finds versions, and reads them.
pub(super) struct Kept {
    pub(super) reader: Arc<Reader>,
    pub(super) runtime: Handle,
    opened: Arc<Opened>,
    /// Whether programs cannot set the times of change of the files below.
    has_change_times: bool,
}

impl Kept {
    /// What is read from the mount below is kept in `cache`.
    pub(super) fn new(
        cache: Arc<Cache>,
        has_change_times: bool,
        metrics: Arc<Metrics>,
        runtime: Handle,
    ) -> Arc<Self> {
        let opened = Opened::new(metrics.clone());
        let reader = Reader::new(cache, opened.clone(), metrics, runtime.clone());
        Arc::new(Self { reader, runtime, opened, has_change_times })
    }

    /// The version that an open file with these attributes is, if it can be served.
    pub(super) fn version(
        &self,
        tree: &Tree,
        file: &Arc<OpenFile>,
        attributes: &Attributes,
        quiet: Quiet,
    ) -> Option<Served> {
        let (node, stamp) = (&file.node, attributes.stamp());
        let has_bytes =
            attributes.file_type() == FileType::RegularFile && (1..=LARGEST).contains(&stamp.size);
        if !has_bytes || !node.content.is_settled(attributes) || !node.content.is_fit(stamp) {
            return None;
        }
        let name = self.name(node, attributes, quiet);
        let version = match node.content.served() {
            // What is known of it, such as how it is read, is worth keeping.
            Some(Served { version, basis: Basis::Stamp(before) }) if before == stamp => version,
            _ => FileVersion::with_layout(
                &tree.nodes().shown_path(node).unwrap_or_default(),
                layout(name, stamp.size),
            ),
        };
        self.opened.add(name, file, State { number: attributes.number(), stamp, quiet });
        Some(Served { version, basis: Basis::Stamp(stamp) })
    }

    fn name(&self, node: &Node, attributes: &Attributes, quiet: Quiet) -> Name {
        let identity = match self.has_change_times {
            true => Identity::File(node.key.bytes()),
            false => Identity::Node(node.generation),
        };
        Name::new(identity, attributes.number(), attributes.stamp(), quiet.written)
    }
}

/// What tells a file from others with the same numbers.
#[derive(Debug, Clone, Copy)]
enum Identity<'a> {
    /// Itself, as long as it exists.
    File(&'a [u8]),
    /// That it is what the kernel knows by this number, until it is forgotten.
    Node(u64),
}

/// The name of the bytes of a file in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Name {
    high: u64,
    low: u64,
}

impl Name {
    fn new(identity: Identity<'_>, number: (u64, u64), stamp: Stamp, written: u64) -> Self {
        let Stamp { size, mtime, ctime } = stamp;
        let mut digest = Context::new(&SHA256);
        for number in [number.0, number.1, size, written] {
            digest.update(&number.to_le_bytes());
        }
        for (seconds, nanoseconds) in [mtime, ctime] {
            digest.update(&seconds.to_le_bytes());
            digest.update(&nanoseconds.to_le_bytes());
        }
        // Last, as the only part whose length is not always the same.
        match identity {
            Identity::File(key) => {
                digest.update(b"file");
                digest.update(key);
            }
            Identity::Node(generation) => {
                digest.update(b"node");
                digest.update(&generation.to_le_bytes());
            }
        }
        let digest = digest.finish();
        let mut words = digest.as_ref().chunks_exact(8).map(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(word);
            u64::from_le_bytes(bytes)
        });
        let mut word = || words.next().unwrap_or_default();
        Self { high: word(), low: word() }
    }

    /// The object that holds the bytes from `offset` on: one for each piece.
    fn object(self, offset: u64) -> ObjectId {
        ObjectId(u128::from(self.high) << 64 | u128::from(self.low.wrapping_add(offset)))
    }

    /// The name of the file that `piece` is of.
    pub(super) fn of(piece: &Object) -> Self {
        let ObjectId(id) = piece.id;
        Self { high: (id >> 64) as u64, low: (id as u64).wrapping_sub(piece.offset) }
    }
}

/// A version without bytes.
pub(super) fn empty(attributes: &Attributes) -> Arc<FileVersion> {
    FileVersion::with_layout("", layout(Name { high: 0, low: 0 }, attributes.stamp().size))
}

/// A file of `size` bytes, in pieces.
fn layout(name: Name, size: u64) -> FileLayout {
    let piece = size.div_ceil(MOST_PIECES).next_power_of_two().max(PIECE);
    let piece_at = |index: u64| {
        let offset = index * piece;
        let size = (size - offset).min(piece);
        Object { id: name.object(offset), offset, size, encoding: ObjectEncoding::default() }
    };
    FileLayout::objects_in_order((0..size.div_ceil(piece)).map(piece_at).collect(), size)
}

/// A small file with these attributes, as the only piece of itself.
#[cfg(test)]
pub(super) fn one_piece(attributes: &Attributes) -> Object {
    let name = Name::new(Identity::Node(1), attributes.number(), attributes.stamp(), 0);
    layout(name, attributes.stamp().size).objects()[0].clone()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn stamp(size: u64, mtime: (i64, u32), ctime: (i64, u32)) -> Stamp {
        Stamp { size, mtime, ctime }
    }

    proptest! {
        /// Whatever of a file is different gives its bytes another name.
        #[test]
        fn names_differ_if_anything_differs(
            number in any::<(u64, u64)>(),
            size: u64,
            mtime in any::<(i64, u32)>(),
            ctime in any::<(i64, u32)>(),
            written: u64,
            key in prop::collection::vec(any::<u8>(), 0..40),
            generation: u64,
        ) {
            let of = |number, stamp, written| Name::new(Identity::File(&key), number, stamp, written);
            let name = of(number, stamp(size, mtime, ctime), written);
            prop_assert_eq!(name, of(number, stamp(size, mtime, ctime), written));
            let longer = [&key[..], &[0]].concat();
            let others = [
                of((number.0 ^ 1, number.1), stamp(size, mtime, ctime), written),
                of((number.0, number.1 ^ 1), stamp(size, mtime, ctime), written),
                of(number, stamp(size ^ 1, mtime, ctime), written),
                of(number, stamp(size, (mtime.0 ^ 1, mtime.1), ctime), written),
                of(number, stamp(size, (mtime.0, mtime.1 ^ 1), ctime), written),
                of(number, stamp(size, mtime, (ctime.0 ^ 1, ctime.1)), written),
                of(number, stamp(size, mtime, (ctime.0, ctime.1 ^ 1)), written),
                of(number, stamp(size, mtime, ctime), written ^ 1),
                Name::new(Identity::File(&longer), number, stamp(size, mtime, ctime), written),
                Name::new(Identity::Node(generation), number, stamp(size, mtime, ctime), written),
                Name::new(Identity::Node(generation ^ 1), number, stamp(size, mtime, ctime), written),
            ];
            let different: HashSet<_> = others.iter().chain([&name]).collect();
            prop_assert_eq!(different.len(), others.len() + 1);
        }

        /// The pieces of a file are all of it, each under an id of its own that leads back to the file.
        #[test]
        fn pieces_are_all_of_a_file(name in any::<(u64, u64)>(), size in 1..=LARGEST) {
            let name = Name { high: name.0, low: name.1 };
            let layout = layout(name, size);
            let pieces = layout.objects();
            prop_assert!(pieces.len() as u64 <= MOST_PIECES);
            let mut end = 0;
            for piece in pieces.iter() {
                prop_assert_eq!(piece.offset, end);
                prop_assert!(piece.size > 0 && piece.size <= 1 << 30);
                prop_assert_eq!(Name::of(piece), name);
                end += piece.size;
            }
            prop_assert_eq!(end, size);
            let ids: HashSet<_> = pieces.iter().map(|piece| piece.id).collect();
            prop_assert_eq!(ids.len(), pieces.len());
        }
    }
}
