//! The values of labels: of what the counters are counted apart.

use serde::Serialize;

/// The source of the bytes of a read: a label of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The daemon's cache.
    Cache,
    /// The disk cache of this host.
    Disk,
    /// The engine beside a volume server, by RDMA.
    Verbs,
    /// The volume server's files on this host, through descriptors of its engine.
    Local,
    /// The engine beside a volume server, over TCP.
    Tcp,
    /// A volume server, over HTTP.
    Http,
    /// The file system below an attached path.
    Lower,
}

impl Source {
    /// All sources, in the order of the ladder; `source as usize` is the index.
    pub const ALL: [Source; 7] =
        [Source::Cache, Source::Disk, Source::Verbs, Source::Local, Source::Tcp, Source::Http, Source::Lower];

    /// The source with this index in [`ALL`](Self::ALL); the cache if there is none.
    pub fn from_index(index: u8) -> Source {
        Source::ALL.get(usize::from(index)).copied().unwrap_or(Source::Cache)
    }

    /// The value of the label `source`.
    pub const fn label(self) -> &'static str {
        match self {
            Source::Cache => "cache",
            Source::Disk => "disk",
            Source::Verbs => "verbs",
            Source::Local => "local",
            Source::Tcp => "tcp",
            Source::Http => "http",
            Source::Lower => "lower",
        }
    }

    /// Whether blocks are fetched from this source.
    pub const fn is_origin(self) -> bool {
        !matches!(self, Source::Cache)
    }

    /// Whether its bytes come from servers, or from the mount below, and not from a cache here.
    pub const fn is_elsewhere(self) -> bool {
        !matches!(self, Source::Cache | Source::Disk)
    }

    /// Whether its bytes are in the daemon's memory: a cache hit.
    pub const fn is_memory(self) -> bool {
        matches!(self, Source::Cache)
    }
}

/// The reason of a prefetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// A handle is read sequentially.
    Sequential,
    /// A chunk is read repeatedly, from the daemon or, as eBPF observes, from the page cache.
    Hot,
    /// The files of a directory are read in order.
    NextFile,
    /// A handle is read with a constant stride.
    Strided,
    /// The same files are read in every epoch.
    Epoch,
    /// A small file was opened.
    Open,
    /// `interceptor warmup` requests the file.
    Warmup,
    /// eBPF observes sequential reads of the file, those from the page cache included.
    KernelStream,
}

impl Trigger {
    /// All triggers; `trigger as usize` is the index.
    pub const ALL: [Trigger; 8] = [
        Trigger::Sequential,
        Trigger::Hot,
        Trigger::NextFile,
        Trigger::Strided,
        Trigger::Epoch,
        Trigger::Open,
        Trigger::Warmup,
        Trigger::KernelStream,
    ];

    /// The value of the label `trigger`.
    pub const fn label(self) -> &'static str {
        match self {
            Trigger::Sequential => "sequential",
            Trigger::Hot => "hot",
            Trigger::NextFile => "next_file",
            Trigger::Strided => "strided",
            Trigger::Epoch => "epoch",
            Trigger::Open => "open",
            Trigger::Warmup => "warmup",
            Trigger::KernelStream => "seen",
        }
    }
}

/// How the kernel reads an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Through the page cache, with requests to the daemon for missing pages.
    Cached,
    /// From a resident file, without the daemon.
    Passthrough,
}

impl OpenMode {
    /// All modes; `mode as usize` is the index.
    pub const ALL: [OpenMode; 2] = [OpenMode::Cached, OpenMode::Passthrough];

    /// The value of the label `way`.
    pub const fn label(self) -> &'static str {
        match self {
            OpenMode::Cached => "cached",
            OpenMode::Passthrough => "passthrough",
        }
    }
}

/// The kinds of eBPF events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelEventKind {
    /// A part of a file turned hot.
    Hot,
    /// A sequential stream needs its next window.
    Stream,
}

impl KernelEventKind {
    /// All kinds; `kind as usize` is the index.
    pub const ALL: [KernelEventKind; 2] = [KernelEventKind::Hot, KernelEventKind::Stream];

    /// The value of the label `kind`.
    pub const fn label(self) -> &'static str {
        match self {
            KernelEventKind::Hot => "hot",
            KernelEventKind::Stream => "stream",
        }
    }
}

/// The outcome of bytes that were fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A read used them.
    Used,
    /// The cache evicted them before any read.
    Wasted,
}

impl Outcome {
    /// All outcomes; `outcome as usize` is the index.
    pub const ALL: [Outcome; 2] = [Outcome::Used, Outcome::Wasted];

    /// The value of the label `outcome`.
    pub const fn label(self) -> &'static str {
        match self {
            Outcome::Used => "used",
            Outcome::Wasted => "wasted",
        }
    }
}
