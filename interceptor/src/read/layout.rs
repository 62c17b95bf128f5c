//! Where the bytes of one version of a file are: in the version itself, or in which object.

use std::collections::HashSet;
use std::fmt::Debug;
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

/// The objects of a file. An origin implements this over what it has, so that no second list is
/// kept: of files of a terabyte the chunk list is most of the memory for metadata.
pub trait ObjectList: Debug + Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// The object with this index, which is below [`count`](Self::count).
    fn object(&self, index: usize) -> Object;

    /// Where in the file the object with this index begins, and how many bytes it covers.
    fn span(&self, index: usize) -> (u64, u64);
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
    /// None if all bytes are inline, or zeros.
    objects: Option<Box<dyn ObjectList>>,
    /// In the order of the file, without overlap. None if that is the order of the objects, of
    /// which each shows as a whole, up to the end of the file.
    extents: Option<Box<[Extent]>>,
}

impl FileLayout {
    /// Bytes that are known, followed by zeros up to `size`.
    pub(super) fn inline(bytes: Bytes, size: u64) -> Self {
        Self { size, inline: bytes, objects: None, extents: None }
    }

    /// Objects in the order of the file and without overlap: each shows as a whole, up to `size`.
    /// Holes between them are zeros.
    pub fn in_order(objects: impl ObjectList + 'static, size: u64) -> Self {
        Self { size, inline: Bytes::new(), objects: Some(Box::new(objects)), extents: None }
    }

    /// Objects, and which of their bytes show.
    pub(super) fn new(objects: impl ObjectList + 'static, extents: Box<[Extent]>, size: u64) -> Self {
        debug_assert!(extents.is_sorted_by(|one, next| one.end <= next.start));
        Self { extents: Some(extents), ..Self::in_order(objects, size) }
    }

    /// Size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// How many objects there are.
    pub fn object_count(&self) -> usize {
        self.objects.as_ref().map_or(0, |objects| objects.count())
    }

    /// The object that segments call `index`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn object(&self, index: usize) -> Object {
        self.list().object(index)
    }

    /// The objects, in the order of their indices.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        (0..self.object_count()).map(|index| self.object(index))
    }

    fn list(&self) -> &dyn ObjectList {
        self.objects.as_deref().expect("a layout with extents has objects")
    }

    fn extent_count(&self) -> usize {
        self.extents.as_ref().map_or_else(|| self.object_count(), |extents| extents.len())
    }

    fn extent(&self, number: usize) -> Extent {
        if let Some(extents) = &self.extents {
            return extents[number];
        }
        let (start, size) = self.list().span(number);
        Extent { start, end: start.saturating_add(size).min(self.size), object: number as u32 }
    }

    fn extents(&self) -> impl Iterator<Item = Extent> {
        (0..self.extent_count()).map(|number| self.extent(number))
    }

    /// How many bytes the list of extents takes.
    #[cfg(test)]
    pub(super) fn extent_bytes(&self) -> usize {
        self.extents.as_ref().map_or(0, |extents| size_of_val(&**extents))
    }

    /// The number of the first extent that ends after the byte `at` of the file.
    fn first_extent_after(&self, at: u64) -> usize {
        let (mut low, mut high) = (0, self.extent_count());
        while low < high {
            let middle = low.midpoint(high);
            if self.extent(middle).end <= at { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The objects in the order of the file, if they follow each other without holes or overlaps,
    /// and all of each shows.
    pub(super) fn whole_objects(&self) -> Option<impl Iterator<Item = Object>> {
        let mut next = 0;
        let follow = self.extents().all(|extent| {
            let (offset, size) = self.list().span(extent.object as usize);
            let follows = extent.start == next && offset == next;
            next = extent.end;
            follows && extent.end - extent.start == size
        });
        let is_whole = follow && next == self.size && self.inline.is_empty();
        is_whole.then(|| self.extents().map(|extent| self.object(extent.object as usize)))
    }

    /// The objects of which bytes show, in the order in which they first do.
    pub(super) fn objects_in_file_order(&self) -> Vec<Object> {
        let mut known = HashSet::new();
        let shown = self.extents().filter(|extent| known.insert(extent.object));
        shown.map(|extent| self.object(extent.object as usize)).collect()
    }

    /// The parts of the bytes from `start` to `end`, in order and without gaps. `end` must not
    /// exceed the size.
    pub(super) fn segments(&self, start: u64, end: u64) -> impl Iterator<Item = Segment> {
        let mut at = start;
        let mut next = self.first_extent_after(start);
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
            let extent = (next < self.extent_count()).then(|| self.extent(next));
            let Some(extent) = extent.filter(|extent| extent.start < end) else {
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
            let (origin, _) = self.list().span(index);
            let until = end.min(extent.end);
            let range = at - origin..until - origin;
            at = until;
            next += 1;
            Some(Segment::Object { index, range })
        })
    }
}

/// Objects that nothing else lists.
#[cfg(test)]
impl ObjectList for Box<[Object]> {
    fn count(&self) -> usize {
        self.len()
    }

    fn object(&self, index: usize) -> Object {
        self[index].clone()
    }

    fn span(&self, index: usize) -> (u64, u64) {
        (self[index].offset, self[index].size)
    }
}
