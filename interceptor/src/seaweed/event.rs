//! Decodes the messages of the metadata subscription.

use super::entry::Entry;
use super::pb;

/// An entry and the directory that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRef {
    /// Absolute path, without a slash at its end except for `/`.
    pub directory: String,
    /// The entry.
    pub entry: Entry,
}

impl EntryRef {
    /// Whether the entry is `path` or lies below it.
    fn is_within(&self, path: &str) -> bool {
        let Some(path) = Some(path.trim_end_matches('/')).filter(|path| !path.is_empty()) else {
            return true;
        };
        let below = |text: &str, path: &str| {
            text.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if below(&self.directory, path) {
            return true;
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.directory.trim_end_matches('/') == parent && self.entry.name == name
    }
}

/// One change of an entry. Only `new`: created. Only `old`: deleted. Both with the same path:
/// modified. Both with different paths: renamed. A renamed directory is followed by a change for
/// each entry below it.
///
/// Changes come in the order in which the filer logged them. A change may come again, and may be
/// older than the result of a later lookup. It says that cached entries of its names may be
/// outdated, not what their current state is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryChange {
    /// When the filer logged it, in ns since the epoch of the filer's clock.
    pub ts_ns: i64,
    /// The entry before.
    pub old: Option<EntryRef>,
    /// The entry after.
    pub new: Option<EntryRef>,
}

/// One part of a message.
#[derive(Debug, PartialEq)]
pub(super) enum StreamEvent {
    /// An entry of the filer's log. `change` is `None` if it is outside of the prefix.
    Logged { ts_ns: i64, change: Option<Box<EntryChange>> },
    /// The stream is alive. The time is that of sending: events of an earlier time may still come.
    /// A message that is no heartbeat and has no event has no time either.
    Heartbeat { ts_ns: i64 },
}

impl StreamEvent {
    /// Its time by the filer's clock, in ns since the epoch.
    pub(super) fn ts_ns(&self) -> i64 {
        match self {
            Self::Logged { ts_ns, .. } | Self::Heartbeat { ts_ns } => *ts_ns,
        }
    }
}

/// The parts of a message in their order. `decode` returns the entry of a directory, unless its
/// name is illegal. Changes outside of `prefix` are left out.
pub(super) fn interpret(
    message: pb::SubscribeMetadataResponse,
    prefix: &str,
    mut decode: impl FnMut(&str, pb::Entry) -> Option<Entry>,
) -> Vec<StreamEvent> {
    let mut rest = vec![message];
    let mut events = Vec::new();
    while let Some(mut message) = rest.pop() {
        rest.extend(std::mem::take(&mut message.events).into_iter().rev());
        events.push(part(message, prefix, &mut decode));
    }
    events
}

fn part(
    message: pb::SubscribeMetadataResponse,
    prefix: &str,
    decode: &mut impl FnMut(&str, pb::Entry) -> Option<Entry>,
) -> StreamEvent {
    let Some(notification) = message.event_notification else {
        return StreamEvent::Heartbeat { ts_ns: message.ts_ns };
    };
    let mut entry_ref = |directory: &str, raw: Option<pb::Entry>| {
        let entry = decode(directory, raw?)?;
        Some(EntryRef { directory: directory.to_owned(), entry })
    };
    let parent = &notification.new_parent_path;
    let to = if parent.is_empty() { &message.directory } else { parent };
    let old = entry_ref(&message.directory, notification.old_entry);
    let new = entry_ref(to, notification.new_entry);
    let relevant = old.iter().chain(&new).any(|entry| entry.is_within(prefix));
    let change = relevant.then(|| Box::new(EntryChange { ts_ns: message.ts_ns, old, new }));
    StreamEvent::Logged { ts_ns: message.ts_ns, change }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seaweed::decode;
    use proptest::prelude::*;
    use prost::Message;

    fn named(name: &str) -> Option<pb::Entry> {
        Some(pb::Entry { name: name.into(), ..Default::default() })
    }

    fn message(
        directory: &str,
        old: Option<pb::Entry>,
        new: Option<pb::Entry>,
        parent: &str,
    ) -> pb::SubscribeMetadataResponse {
        let notification =
            pb::EventNotification { old_entry: old, new_entry: new, new_parent_path: parent.into() };
        pb::SubscribeMetadataResponse {
            directory: directory.into(),
            event_notification: Some(notification),
            ts_ns: 7,
            events: vec![],
        }
    }

    fn decoded(message: pb::SubscribeMetadataResponse, prefix: &str) -> Vec<StreamEvent> {
        interpret(message, prefix, |_, raw| Some(decode::entry(raw)))
    }

    /// The old and the new path of the only change.
    fn paths(message: pb::SubscribeMetadataResponse, prefix: &str) -> Option<(String, String)> {
        let path = |place: &Option<EntryRef>| match place {
            Some(place) => format!("{}/{}", place.directory, place.entry.name),
            None => String::new(),
        };
        match decoded(message, prefix).pop().unwrap() {
            StreamEvent::Logged { ts_ns: 7, change } => {
                change.map(|change| (path(&change.old), path(&change.new)))
            }
            other => panic!("{other:?}"),
        }
    }

    fn change(old: &str, new: &str) -> Option<(String, String)> {
        Some((old.into(), new.into()))
    }

    #[test]
    fn the_parts_of_a_notification_tell_creation_deletion_change_and_rename() {
        assert_eq!(paths(message("/a", None, named("f"), ""), "/"), change("", "/a/f"));
        assert_eq!(paths(message("/a", None, named("f"), "/a"), "/"), change("", "/a/f"));
        assert_eq!(paths(message("/a", named("f"), None, ""), "/"), change("/a/f", ""));
        assert_eq!(paths(message("/a", named("f"), named("f"), "/a"), "/"), change("/a/f", "/a/f"));
        assert_eq!(paths(message("/a", named("f"), named("f"), ""), "/"), change("/a/f", "/a/f"));
        assert_eq!(paths(message("/a", named("f"), named("g"), ""), "/"), change("/a/f", "/a/g"));
        assert_eq!(paths(message("/a", named("f"), named("g"), "/b"), "/"), change("/a/f", "/b/g"));
    }

    #[test]
    fn markers_move_the_position_and_heartbeats_do_not() {
        assert_eq!(
            decoded(message("", None, None, ""), "/"),
            [StreamEvent::Logged { ts_ns: 7, change: None }]
        );
        let heartbeat = pb::SubscribeMetadataResponse { ts_ns: 9, ..Default::default() };
        assert_eq!(decoded(heartbeat, "/"), [StreamEvent::Heartbeat { ts_ns: 9 }]);
    }

    #[test]
    fn a_batch_keeps_its_order() {
        let mut batch = message("/a", None, named("1"), "");
        batch.events = vec![message("/a", None, named("2"), ""), message("/a", None, named("3"), "")];
        let names: Vec<_> = decoded(batch, "/")
            .into_iter()
            .map(|event| match event {
                StreamEvent::Logged { change: Some(change), .. } => change.new.unwrap().entry.name,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["1", "2", "3"]);
    }

    #[test]
    fn only_changes_within_the_prefix_are_reported() {
        for (directory, name, within) in [
            ("/data", "f", true),
            ("/data/sub", "f", true),
            ("/", "data", true),
            ("/data2", "f", false),
            ("/", "data2", false),
            ("/other", "data", false),
        ] {
            let seen = paths(message(directory, named(name), None, ""), "/data");
            assert_eq!(seen.is_some(), within, "{directory} {name}");
        }
        assert_eq!(
            paths(message("/data", named("f"), named("f"), "/out"), "/data/"),
            change("/data/f", "/out/f")
        );
        assert_eq!(
            paths(message("/out", named("f"), named("f"), "/data"), "/data"),
            change("/out/f", "/data/f")
        );
    }

    #[test]
    fn an_entry_without_a_legal_name_is_left_out() {
        let events = interpret(message("/a", named("x"), None, ""), "/", |_, _| None);
        assert_eq!(events, [StreamEvent::Logged { ts_ns: 7, change: None }]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            if let Ok(message) = pb::SubscribeMetadataResponse::decode(&bytes[..]) {
                decoded(message, "/");
            }
        }
    }
}
