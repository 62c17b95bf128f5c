//! Translates options in the spelling of mount(8), of FUSE and of `weed mount` to those of
//! `interceptor mount`.
//!
//! A list of mount(8) (`-o cache-size=8GiB,ro,_netdev`) has four kinds of options: those of
//! `interceptor mount` under their long names; those that mount(8), fstab and systemd keep for
//! themselves; those of `weed mount`; and others, which are errors that name the nearest option.
//! The first become `--NAME=VALUE`, the second are dropped, and the third become the option of the
//! same purpose, are dropped if they only concern writing or the innards of `weed`, or are answered
//! with what to write instead. On a command line the options of `weed mount` begin with one dash,
//! as Go has it, or with two.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, Command};
use daemon::nearest::nearest as nearest_name;

/// Options of mount(8), fstab(5) and systemd.mount(5) that need nothing to be done. A mount is
/// always read-only, without devices and without set-user-ID programs, and knows no access times.
const HANDLED_BY_MOUNT: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "comment",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "helper",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "subtype",
    "symfollow",
    "sync",
    "uhelper",
    "user",
    "users",
];

/// Options of mount(8) that cannot be had, each with the reason.
const REFUSED_OF_MOUNT: &[(&str, &str)] = &[
    ("remount", "a mount cannot be changed; unmount it and mount it again"),
    ("bind", "use `mount --bind`, which needs no helper"),
    ("rbind", "use `mount --rbind`, which needs no helper"),
    ("move", "use `mount --move`, which needs no helper"),
    ("fmask", "take file-mode=MODE, the permissions that files have"),
    ("dmask", "take dir-mode=MODE, the permissions that directories have"),
    ("rootmode", "it is for the FUSE library; dir-mode=MODE sets permissions"),
    ("allow_root", "take allow-other"),
    ("context", "labels of SELinux cannot be set"),
    ("fscontext", "labels of SELinux cannot be set"),
    ("defcontext", "labels of SELinux cannot be set"),
    ("rootcontext", "labels of SELinux cannot be set"),
];

/// What an option of `weed mount` means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WeedMeaning {
    /// The option of this name, with the same values.
    Named(&'static str),
    /// The mount point, which is an argument.
    MountPoint,
    /// The size of the cache, in MiB: of that on disk if there is a directory for it.
    CacheMebibytes,
    /// A switch that is always on.
    AlwaysOn,
    /// Nothing to an application that reads: it is about writing, or about the innards of `weed`.
    Nothing,
    /// Nothing that can be had; what to write instead.
    Refused(&'static str),
}

/// An option of `weed mount`: its name, whether it is a switch, and its meaning here.
type WeedOption = (&'static str, bool, WeedMeaning);

use WeedMeaning::{AlwaysOn, CacheMebibytes, MountPoint, Named, Nothing, Refused};

const NO_PROFILE: &str = "there is no such profile here; `interceptor top` shows where time goes";
const NO_PEERS: &str = "mounts do not read from each other; an rdma-engine serves all of them";

/// All options of `weed mount` 4.48.
const WEED_OPTIONS: &[WeedOption] = &[
    ("allowOthers", true, Named("allow-other")),
    ("asyncDio", true, Nothing),
    ("autofs", true, Nothing),
    ("cacheCapacityMB", false, CacheMebibytes),
    ("cacheDir", false, Named("disk-cache")),
    ("cacheDirMaxEntries", false, Nothing),
    ("cacheDirWrite", false, Nothing),
    ("cacheMetaTtlSec", false, Nothing),
    ("cacheSymlink", true, Nothing),
    ("chunkSizeLimitMB", false, Nothing),
    ("collection", false, Nothing),
    ("collectionQuotaMB", false, Nothing),
    ("concurrentReaders", false, Named("concurrent-readers")),
    ("concurrentWriters", false, Nothing),
    ("cpuprofile", false, Refused(NO_PROFILE)),
    ("dataCenter", false, Named("data-center")),
    ("debug", true, Refused("take log-level=debug")),
    ("debug.fuse", true, Refused("take log-level=debug")),
    ("debug.port", false, Refused("take status-addr=HOST:PORT, where the dashboard is")),
    ("defaultPermissions", true, AlwaysOn),
    ("df.logical", true, Nothing),
    ("dir", false, MountPoint),
    ("dirAutoCreate", true, Refused("make the directory; in fstab, x-mount.mkdir has mount(8) make it")),
    ("dirIdleEvictSec", false, Nothing),
    ("disableXAttr", true, Nothing),
    ("disk", false, Nothing),
    ("dlm", true, Nothing),
    ("filer", false, Named("filer")),
    ("filer.path", false, Named("filer-path")),
    ("fuse.congestionThreshold", false, Nothing),
    ("fuse.maxBackground", false, Nothing),
    ("includeSystemEntries", true, Named("include-system-entries")),
    ("localSocket", false, Nothing),
    ("map.gid", false, Named("map-gid")),
    ("map.uid", false, Named("map-uid")),
    ("memoryLimitMB", false, Refused("take cache-size=SIZE, of which other memory is a share")),
    ("memprofile", false, Refused(NO_PROFILE)),
    ("metadataFlushSeconds", false, Nothing),
    ("nonempty", true, Named("nonempty")),
    ("options", false, Refused("take config=FILE, a TOML file with options under their long names")),
    ("peer.advertise", false, Refused(NO_PEERS)),
    ("peer.dataCenter", false, Refused(NO_PEERS)),
    ("peer.enable", true, Refused(NO_PEERS)),
    ("peer.listen", false, Refused(NO_PEERS)),
    ("peer.rack", false, Refused(NO_PEERS)),
    ("posix.dirNLink", true, Nothing),
    ("readOnly", true, AlwaysOn),
    ("readRetryTime", false, Named("read-retry-time")),
    ("readerCacheSizeMB", false, Nothing),
    ("replication", false, Nothing),
    ("sys.novncache", true, Nothing),
    ("ttl", false, Nothing),
    ("umask", false, Named("umask")),
    ("volumeName", false, Named("fsname")),
    ("volumeServerAccess", false, Named("volume-server-access")),
    ("windows.gid", false, Nothing),
    ("windows.uid", false, Nothing),
    ("writeBufferSizeMB", false, Nothing),
    ("writebackCache", true, Nothing),
];

/// Why an option cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForeignOptionError {
    /// No program has it.
    #[error("unknown option {name:?}{}", nearest.as_ref().map_or(String::new(), |nearest| format!("; the nearest known one is {nearest:?}")))]
    Unknown {
        /// As it was typed.
        name: String,
        /// The most similar name, if one is similar.
        nearest: Option<String>,
    },
    /// It has no counterpart, or cannot be had.
    #[error("option {name:?} cannot be taken: {reason}")]
    Refused {
        /// As it was typed.
        name: String,
        /// What to do instead.
        reason: String,
    },
    /// It needs a value and has none.
    #[error("option {0:?} needs a value: {0}=…")]
    NoValue(String),
    /// A quotation mark has no counterpart.
    #[error("a quotation mark is not closed in the options {0:?}")]
    OpenQuote(String),
}

/// An option, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TypedOption {
    pub(super) name: String,
    pub(super) value: Option<String>,
}

/// Options in the order in which they are typed, translated.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TranslatedOptions {
    /// Arguments of `interceptor mount`, of which each is `--NAME` or `--NAME=VALUE`.
    pub(super) arguments: Vec<String>,
    /// `-dir` of `weed mount`.
    pub(super) mount_point: Option<String>,
    /// Names that are understood and mean nothing here, for a note.
    pub(super) ignored: Vec<String>,
}

/// Takes a list of mount(8) apart. A value that holds commas stands in single or double quotation
/// marks, or has a backslash before each of them.
pub(super) fn split_list(list: &str) -> Result<Vec<TypedOption>, ForeignOptionError> {
    let (mut items, mut item, mut quote) = (Vec::new(), String::new(), None);
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', _) if matches!(letters.peek(), Some(',' | '\\')) => item.extend(letters.next()),
            ('\'' | '"', None) => quote = Some(letter),
            (letter, Some(mark)) if letter == mark => quote = None,
            (',', None) => items.push(std::mem::take(&mut item)),
            (letter, _) => item.push(letter),
        }
    }
    if quote.is_some() {
        return Err(ForeignOptionError::OpenQuote(list.to_owned()));
    }
    items.push(item);
    let options = items.iter().map(|item| item.trim()).filter(|item| !item.is_empty());
    Ok(options.map(TypedOption::parse).collect())
}

impl TypedOption {
    fn parse(text: &str) -> Self {
        match text.split_once('=') {
            Some((name, value)) => Self { name: name.to_owned(), value: Some(value.to_owned()) },
            None => Self { name: text.to_owned(), value: None },
        }
    }
}

/// Takes the arguments behind `weed mount` apart, up to the first that is no option.
pub(super) fn split_weed_arguments(arguments: &[OsString]) -> Vec<TypedOption> {
    let (mut options, mut rest) = (Vec::new(), arguments.iter().map(|argument| argument.to_string_lossy()));
    while let Some(argument) = rest.next() {
        let Some(text) = argument.strip_prefix('-').filter(|text| !matches!(*text, "" | "-")) else { break };
        let mut option = TypedOption::parse(text.strip_prefix('-').unwrap_or(text));
        let is_switch = weed_option(&option.name).is_none_or(|(_, is_switch, _)| *is_switch);
        if option.value.is_none() && !is_switch {
            option.value = rest.next().map(|value| value.into_owned());
        }
        options.push(option);
    }
    options
}

/// Translates `options` for `command`, which is `interceptor mount`. `is_sloppy` drops unknown ones
/// (`mount -s`).
pub(super) fn translate(
    options: &[TypedOption],
    command: &Command,
    is_sloppy: bool,
) -> Result<TranslatedOptions, ForeignOptionError> {
    let has_cache_directory =
        options.iter().any(|option| ["cacheDir", "disk-cache"].contains(&&*option.name));
    let mut translated = TranslatedOptions::default();
    for option in options {
        if let Some(argument) = own_argument(option, command) {
            translated.arguments.push(argument);
        } else if let Some((_, is_switch, meaning)) = weed_option(&option.name) {
            translated.take_weed(option, *is_switch, *meaning, has_cache_directory)?;
        } else if is_of_mount(&option.name) {
        } else if let Some((_, reason)) = REFUSED_OF_MOUNT.iter().find(|(name, _)| *name == option.name) {
            return Err(option.refused(reason));
        } else if is_sloppy {
            translated.ignored.push(option.name.clone());
        } else {
            let nearest = nearest(&option.name, command);
            return Err(ForeignOptionError::Unknown { name: option.name.clone(), nearest });
        }
    }
    Ok(translated)
}

/// Translates the arguments behind `interceptor mount`: `-o LIST`, and the options of `weed mount`.
/// All others stay. What follows `--` are paths.
pub(super) fn translate_arguments(
    typed: &[OsString],
    command: &Command,
) -> Result<(Vec<OsString>, Vec<String>), ForeignOptionError> {
    let (mut arguments, mut options, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = typed.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_str().unwrap_or_default();
        let long = weed_argument(text, command);
        // `-options` of `weed` is no `-o`.
        let is_known = long.as_ref().is_some_and(|option| {
            weed_option(&option.name).is_some() || own_argument(option, command).is_some()
        });
        if text == "--" {
            paths.extend(rest.by_ref().cloned());
        } else if let Some(list) = text.strip_prefix("-o").filter(|_| !is_known) {
            let next = if list.is_empty() { rest.next().and_then(|next| next.to_str()) } else { Some(list) };
            options.extend(split_list(next.ok_or_else(|| ForeignOptionError::NoValue("-o".into()))?)?);
        } else if let Some(mut option) = long {
            let is_switch = weed_option(&option.name).is_none_or(|(_, is_switch, _)| *is_switch);
            if option.value.is_none() && !is_switch {
                option.value = rest.next().map(|value| value.to_string_lossy().into_owned());
            }
            options.push(option);
        } else {
            arguments.push(argument.clone());
            // The value of an option may look like an option of `weed`.
            if takes_next(text, command) {
                arguments.extend(rest.next().cloned());
            }
        }
    }
    let translated = translate(&options, command, false)?;
    arguments.extend(translated.arguments.into_iter().map(OsString::from));
    if !paths.is_empty() || translated.mount_point.is_some() {
        arguments.push("--".into());
        arguments.extend(translated.mount_point.map(OsString::from));
        arguments.extend(paths);
    }
    Ok((arguments, translated.ignored))
}

impl TranslatedOptions {
    fn take_weed(
        &mut self,
        option: &TypedOption,
        is_switch: bool,
        meaning: WeedMeaning,
        has_cache_directory: bool,
    ) -> Result<(), ForeignOptionError> {
        let value = option.value.as_deref();
        let needed = || value.ok_or_else(|| ForeignOptionError::NoValue(option.name.clone()));
        match meaning {
            Named(name) if is_switch => {
                self.arguments.push(format!("--{name}={}", value.unwrap_or("true")));
            }
            Named(name) => self.arguments.push(format!("--{name}={}", needed()?)),
            MountPoint => self.mount_point = Some(needed()?.to_owned()),
            CacheMebibytes => {
                let name = if has_cache_directory { "disk-cache-size" } else { "cache-size" };
                self.arguments.push(format!("--{name}={}MiB", needed()?));
            }
            AlwaysOn if matches!(value, None | Some("true" | "1")) => {}
            AlwaysOn => return Err(option.refused("a mount is always so")),
            Nothing => self.ignored.push(option.name.clone()),
            Refused(reason) => return Err(option.refused(reason)),
        }
        Ok(())
    }
}

impl TypedOption {
    fn refused(&self, reason: &str) -> ForeignOptionError {
        ForeignOptionError::Refused { name: self.name.clone(), reason: reason.to_owned() }
    }
}

/// The option as an argument, if it is one of `interceptor mount`; `_` may stand for `-`.
fn own_argument(option: &TypedOption, command: &Command) -> Option<String> {
    let name = option.name.replace('_', "-");
    let positive = super::options::negated_switch(&name).unwrap_or(&name);
    own_option(positive, command)?;
    Some(match &option.value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    })
}

fn own_option<'a>(name: &str, command: &'a Command) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| argument.get_long() == Some(name) && name != "help")
}

fn weed_option(name: &str) -> Option<&'static WeedOption> {
    WEED_OPTIONS.iter().find(|(known, ..)| *known == name)
}

fn is_of_mount(name: &str) -> bool {
    HANDLED_BY_MOUNT.contains(&name) || name.starts_with("x-") || name.starts_with("X-")
}

/// The option, if the argument has one dash and a long name, or two and a name that only `weed`
/// has.
fn weed_argument(text: &str, command: &Command) -> Option<TypedOption> {
    let has_two_dashes = text.starts_with("--");
    let option = TypedOption::parse(text.trim_start_matches('-'));
    let is_long = text.starts_with('-') && option.name.chars().nth(1).is_some();
    if !is_long || (has_two_dashes && own_argument(&option, command).is_some()) {
        return None;
    }
    (!has_two_dashes || weed_option(&option.name).is_some()).then_some(option)
}

/// Whether the argument is an option whose value is the next argument.
fn takes_next(text: &str, command: &Command) -> bool {
    let option = text.strip_prefix("--").and_then(|name| own_option(name, command));
    option.is_some_and(|option| option.get_action().takes_values() && !option.is_require_equals_set())
}

/// The known name that is most similar to `name`.
fn nearest(name: &str, command: &Command) -> Option<String> {
    let own = command.get_arguments().filter_map(Arg::get_long).filter(|name| *name != "help");
    let known = own.chain(WEED_OPTIONS.iter().map(|(name, ..)| *name));
    let known = known.chain(HANDLED_BY_MOUNT.iter().copied());
    nearest_name(&name.replace('_', "-"), known).map(str::to_owned)
}

/// Filers and directory of a source: `HOST:PORT[,HOST:PORT]:/PATH`, or without the colon before the
/// path. `None` if it has no address, as `none` or `fuse`.
pub(super) fn split_source(source: &OsStr) -> Option<(String, Option<String>)> {
    let text = std::str::from_utf8(source.as_bytes()).ok()?;
    let (filers, path) = match text.find('/') {
        Some(start) => (text[..start].trim_end_matches(':'), Some(text[start..].to_owned())),
        None => (text.trim_end_matches(':'), None),
    };
    let has_address = path.is_some() || filers.contains([':', ',', '.']);
    (has_address && !filers.is_empty()).then(|| (filers.to_owned(), path))
}

#[cfg(test)]
mod tests;
