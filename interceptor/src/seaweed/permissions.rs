//! Which owner and which permissions a file has on this host.
//!
//! SeaweedFS keeps numeric ids, which need not mean the same user or group here, and what a gateway
//! for objects has written belongs to whoever ran the gateway. So ids can be mapped, and ids and
//! permission bits replaced. The kernel checks access by what comes out.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use super::entry::{Attributes, FileKind};

/// Maps ids of the filer to ids of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    local: BTreeMap<u32, u32>,
}

/// A text is no id map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdMapError {
    /// A part of it is not `LOCAL:FILER`.
    #[error("`{0}` does not map an id: expected LOCAL:FILER, two numbers")]
    NoPair(String),
    /// An id of the filer would have two ids here.
    #[error("it maps the filer's id {0} to more than one id")]
    Ambiguous(u32),
}

impl IdMap {
    /// The id on this host of a filer's id, if it is mapped.
    fn local(&self, filer: u32) -> Option<u32> {
        self.local.get(&filer).copied()
    }
}

impl Display for IdMap {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.local.iter().map(|(filer, here)| format!("{here}:{filer}")).collect();
        formatter.write_str(&pairs.join(","))
    }
}

impl FromStr for IdMap {
    type Err = ParseIdMapError;

    /// Reads `LOCAL:FILER,LOCAL:FILER…`, as `weed mount -map.uid` does; an empty text maps
    /// nothing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut local = BTreeMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let ids = pair.split_once(':').and_then(|(l, f)| Some((l.parse().ok()?, f.parse().ok()?)));
            let (here, filer) = ids.ok_or_else(|| ParseIdMapError::NoPair(pair.to_owned()))?;
            if local.insert(filer, here).is_some_and(|other| other != here) {
                return Err(ParseIdMapError::Ambiguous(filer));
            }
        }
        Ok(Self { local })
    }
}

/// Permission bits (`07777`), written in octal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PermissionBits(u16);

impl Display for PermissionBits {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.0)
    }
}

/// A text is no permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected permission bits in octal, from 0 to 7777, like 0644")]
pub struct ParsePermissionBitsError;

impl FromStr for PermissionBits {
    type Err = ParsePermissionBitsError;

    /// Reads `644`, `0644` and `0o644`, which are the same.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let is_octal = digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let bits = u16::from_str_radix(digits, 8).ok().filter(|bits| is_octal && *bits <= 0o7777);
        bits.map(Self).ok_or(ParsePermissionBitsError)
    }
}

/// What the filer's owners and permissions are changed to. The default changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PermissionRules {
    /// Users of the filer and of this host.
    pub users: IdMap,
    /// Groups of the filer and of this host.
    pub groups: IdMap,
    /// The user of this host that has what [`users`](Self::users) does not map.
    pub uid: Option<u32>,
    /// The group of this host that has what [`groups`](Self::groups) does not map.
    pub gid: Option<u32>,
    /// The permissions of everything but directories and symbolic links.
    pub file_mode: Option<PermissionBits>,
    /// The permissions of directories.
    pub dir_mode: Option<PermissionBits>,
    /// The permissions that nothing has but symbolic links, whose own mean nothing.
    pub umask: PermissionBits,
}

impl PermissionRules {
    /// Changes attributes as the filer has them to those of this host.
    pub(super) fn apply(&self, attr: &mut Attributes) {
        attr.uid = self.users.local(attr.uid).or(self.uid).unwrap_or(attr.uid);
        attr.gid = self.groups.local(attr.gid).or(self.gid).unwrap_or(attr.gid);
        let replaced = match attr.kind {
            FileKind::Symlink => return,
            FileKind::Directory => self.dir_mode,
            _ => self.file_mode,
        };
        attr.perm = replaced.map_or(attr.perm, |bits| bits.0) & !self.umask.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_number_is_the_filers() {
        let map: IdMap = "1000:0, 7:8".parse().unwrap();
        assert_eq!((map.local(0), map.local(8), map.local(1000)), (Some(1000), Some(7), None));
        assert_eq!("".parse(), Ok(IdMap::default()));
        assert_eq!(map.to_string().parse(), Ok(map));
    }

    #[test]
    fn malformed_pairs_are_named() {
        for text in ["1", "1:", ":1", "a:1", "1:-1", "1:2:3", "4294967296:1"] {
            assert_eq!(format!("0:0,{text}").parse::<IdMap>(), Err(ParseIdMapError::NoPair(text.into())));
        }
        assert_eq!("1:5,2:5".parse::<IdMap>(), Err(ParseIdMapError::Ambiguous(5)));
        assert!("1:5,1:5,1:6".parse::<IdMap>().is_ok());
    }

    #[test]
    fn permission_bits_are_octal() {
        for text in ["644", "0644", "0o644", "00644"] {
            assert_eq!(text.parse(), Ok(PermissionBits(0o644)), "{text}");
        }
        assert_eq!("7777".parse(), Ok(PermissionBits(0o7777)));
        for text in ["", "0o", "8", "648", "10000", "+644", "-1", "rw-r--r--", "u=rw", "0x1ff", " 644"] {
            assert_eq!(text.parse::<PermissionBits>(), Err(ParsePermissionBitsError), "{text:?}");
        }
    }

    /// Owner, group and permissions that the rules make of a file of 7:8 with 0664.
    fn applied(rules: &PermissionRules, kind: FileKind) -> (u32, u32, u16) {
        let start = std::time::UNIX_EPOCH;
        let (perm, uid, gid, size, nlink, rdev, inode) = (0o664, 7, 8, 0, 1, 0, 0);
        let (mtime, ctime, crtime) = (start, start, start);
        let mut attr = Attributes { kind, perm, uid, gid, size, mtime, ctime, crtime, nlink, rdev, inode };
        rules.apply(&mut attr);
        (attr.uid, attr.gid, attr.perm)
    }

    #[test]
    fn rules_are_for_what_their_names_say() {
        use FileKind::{Directory, File, NamedPipe, Symlink};
        let none = PermissionRules::default();
        for kind in [File, Directory, Symlink, NamedPipe] {
            assert_eq!(applied(&none, kind), (7, 8, 0o664), "{kind:?}");
        }
        let bits = |text: &str| text.parse::<PermissionBits>().unwrap();
        let all = PermissionRules {
            users: "1000:7".parse().unwrap(),
            groups: "1:1".parse().unwrap(),
            uid: Some(5),
            gid: Some(6),
            file_mode: Some(bits("4777")),
            dir_mode: Some(bits("1770")),
            umask: bits("022"),
        };
        // A map goes before the id for all.
        assert_eq!(applied(&all, File), (1000, 6, 0o4755));
        assert_eq!(applied(&all, NamedPipe), (1000, 6, 0o4755));
        assert_eq!(applied(&all, Directory), (1000, 6, 0o1750));
        assert_eq!(applied(&all, Symlink), (1000, 6, 0o664));
        let masked = PermissionRules { umask: bits("027"), ..PermissionRules::default() };
        assert_eq!(applied(&masked, File), (7, 8, 0o640));
    }
}
