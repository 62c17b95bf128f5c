//! Where the bytes of one version of a file are: in the version itself, or in which object.

use std::collections::HashSet;
use std::ops::Range;

use bytes::Bytes;

use crate::cache::ObjectId;

/// The largest object that may have to be held whole in memory, in bytes, because a part of it
/// cannot be read without the rest.
pub(super) const MAX_INDIVISIBLE_SIZE: u64 = 1 << 30;

/// An object of an origin that a file's bytes are stored in. Its bytes never change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Names the bytes: no other object of any origin of the cache has the same id.
    pub id: ObjectId,
    /// Where in the file the object begins, in bytes.
    pub offset: u64,
    /// How many bytes of the file it covers; what is stored beyond them is no part of the file.
    pub size: u64,
    /// When it was written, in ns since the epoch; 0 if the origin does not tell.
    pub modified_ts_ns: i64,
    /// How it is stored.
    pub encoding: ObjectEncoding,
}

/// How the bytes of an object are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectEncoding {
    /// The AES-256-GCM key, if the object is encrypted.
    pub cipher_key: Option<Box<[u8; 32]>>,
    /// Whether the object was compressed.
    pub is_compressed: bool,
}

impl Object {
    /// Whether a part of the object can be read without the rest.
    pub(super) fn is_divisible(&self) -> bool {
        self.encoding == ObjectEncoding::default()
    }
}

/// A run of a file's bytes that one object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte in the file.
    pub(super) start: u64,
    /// Byte after the last.
    pub(super) end: u64,
    /// Index of the object in the layout.
    pub(super) object: u32,
}

/// A part of a read before it is known where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// Bytes of the version itself.
    Inline(Bytes),
    /// A hole of so many bytes.
    Zeros(usize),
    /// Bytes of an object.
    Object {
        /// Index of the object in its layout.
        index: usize,
        /// Which of the object's bytes.
        range: Range<u64>,
    },
}

/// The resolved content of a version.
#[derive(Debug)]
pub struct FileLayout {
    size: u64,
    inline: Bytes,
    objects: Box<[Object]>,
    /// In the order of the file, without overlap.
    extents: Box<[Extent]>,
}

impl FileLayout {
    /// Bytes that are known, followed by zeros up to `size`.
    pub(super) fn inline(bytes: Bytes, size: u64) -> Self {
        Self { size, inline: bytes, objects: Box::new([]), extents: Box::new([]) }
    }

    /// Objects of which each holds the bytes that its `offset` and `size` tell, in the order of
    /// the file and without overlap. Holes between them are zeros.
    pub fn objects_in_order(objects: Box<[Object]>, size: u64) -> Self {
        let extent = |(index, object): (usize, &Object)| Extent {
            start: object.offset,
            end: object.offset + object.size,
            object: index as u32,
        };
        let extents = objects.iter().enumerate().map(extent).collect();
        Self::new(objects, extents, size)
    }

    /// Objects, and which of their bytes show.
    pub(super) fn new(objects: Box<[Object]>, extents: Box<[Extent]>, size: u64) -> Self {
        debug_assert!(extents.is_sorted_by(|one, next| one.end <= next.start));
        Self { size, inline: Bytes::new(), objects, extents }
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The objects that segments refer to.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The objects in the order of the file, if they follow each other without holes or overlaps,
    /// and all of each shows.
    pub(super) fn whole_objects(&self) -> Option<impl Iterator<Item = &Object>> {
        let mut next = 0;
        let follow = self.extents.iter().all(|extent| {
            let object = &self.objects[extent.object as usize];
            let follows = extent.start == next && object.offset == next;
            next = extent.end;
            follows && extent.end - extent.start == object.size
        });
        let is_whole = follow && next == self.size && self.inline.is_empty();
        is_whole.then(|| self.extents.iter().map(|extent| &self.objects[extent.object as usize]))
    }

    /// The objects of which bytes show, in the order in which they first do.
    pub(super) fn objects_in_file_order(&self) -> Vec<Object> {
        let mut known = HashSet::new();
        let shown = self.extents.iter().filter(|extent| known.insert(extent.object));
        shown.map(|extent| self.objects[extent.object as usize].clone()).collect()
    }

    /// The parts of the bytes from `start` to `end`, in order and without gaps. `end` must not
    /// exceed the size.
    pub(super) fn segments(&self, start: u64, end: u64) -> impl Iterator<Item = Segment> {
        let mut at = start;
        let mut extents = {
            let first = self.extents.partition_point(|extent| extent.end <= start);
            self.extents[first..].iter()
        };
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            if at < self.inline.len() as u64 {
                let until = end.min(self.inline.len() as u64);
                let bytes = self.inline.slice(at as usize..until as usize);
                at = until;
                return Some(Segment::Inline(bytes));
            }
            let Some(extent) = extents.as_slice().first().filter(|extent| extent.start < end) else {
                let zeros = Segment::Zeros((end - at) as usize);
                at = end;
                return Some(zeros);
            };
            if at < extent.start {
                let zeros = Segment::Zeros((extent.start - at) as usize);
                at = extent.start;
                return Some(zeros);
            }
            let index = extent.object as usize;
            let origin = self.objects[index].offset;
            let until = end.min(extent.end);
            let range = at - origin..until - origin;
            at = until;
            extents.next();
            Some(Segment::Object { index, range })
        })
    }
}
