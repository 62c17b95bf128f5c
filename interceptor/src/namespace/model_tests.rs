//! The node table against a model of the kernel's reference counts, under generated operations. Now
//! and then another process takes over, with what the ledger has.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::directory::Dentry;
use super::nodes::{NodeRecord, NodeTable};
use super::tests::{directory, file};
use super::{NodeId, ROOT};
use crate::ledger::Ledger;

#[derive(Debug, Clone)]
enum Step {
    Attach { parent: usize, name: usize, inode: u64, directory: bool, linked: bool, content: u8 },
    Forget { node: usize, all: bool },
    ShowName { parent: usize, name: usize, inode: u64 },
    ForgetName,
    Open { node: usize },
    Close { node: usize },
    Unlink { parent: usize, name: usize },
    Rename { from: usize, name: usize, to: usize, new_name: usize },
    LearnAbsent { parent: usize, name: usize },
    TakeOver,
}

fn step() -> impl Strategy<Value = Step> {
    let pick = 0..8usize;
    let name = 0..3usize;
    prop_oneof![
        4 => (pick.clone(), name.clone(), 0..6u64, any::<(bool, bool)>(), 0..2u8).prop_map(
            |(parent, name, inode, (directory, linked), content)| {
                Step::Attach { parent, name, inode, directory, linked, content }
            }
        ),
        3 => (pick.clone(), any::<bool>()).prop_map(|(node, all)| Step::Forget { node, all }),
        2 => (pick.clone(), name.clone(), 2..6u64).prop_map(
            |(parent, name, inode)| Step::ShowName { parent, name, inode }
        ),
        2 => Just(Step::ForgetName),
        1 => pick.clone().prop_map(|node| Step::Open { node }),
        1 => pick.clone().prop_map(|node| Step::Close { node }),
        1 => (pick.clone(), name.clone()).prop_map(|(parent, name)| Step::Unlink { parent, name }),
        1 => (pick.clone(), name.clone()).prop_map(|(parent, name)| Step::LearnAbsent { parent, name }),
        1 => Just(Step::TakeOver),
        1 => (pick.clone(), name.clone(), pick, name)
            .prop_map(|(from, name, to, new_name)| Step::Rename { from, name, to, new_name }),
    ]
}

/// The kernel's counts: lookups and opens of each node.
#[derive(Default)]
struct KernelModel {
    counts: HashMap<NodeId, (u64, u64)>,
    /// Numbers that it got with a name uncounted, and will forget.
    uncounted: Vec<NodeId>,
}

impl KernelModel {
    fn pick(&self, index: usize) -> NodeId {
        let mut ids: Vec<_> = self.counts.keys().copied().collect();
        ids.sort_unstable();
        ids.insert(0, ROOT);
        ids[index % ids.len()]
    }

    fn release(&mut self, id: NodeId) {
        if self.counts.get(&id) == Some(&(0, 0)) {
            self.counts.remove(&id);
        }
    }
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn run(nodes: &mut NodeTable, kernel: &mut KernelModel, step: &Step) {
    match *step {
        Step::Attach { parent, name, inode, directory: is_directory, linked, content } => {
            let name = NAMES[name];
            let mut entry = if is_directory { directory(name, inode) } else { file(name, inode, &[content]) };
            entry.hard_link = (linked && !is_directory).then(|| vec![inode as u8].into());
            let parent = kernel.pick(parent);
            if let Some((id, _)) = nodes.attach(parent, name, &Arc::new(entry.clone())) {
                kernel.counts.entry(id).or_default().0 += 1;
                let known = nodes.get(id).expect("was just attached");
                assert_eq!(known.entry.content, entry.content, "a node has the content of the name");
            }
        }
        Step::Forget { node, all } => {
            let id = kernel.pick(node);
            if let Some(counts) = kernel.counts.get_mut(&id) {
                let count = if all { counts.0 } else { counts.0.min(1) };
                counts.0 -= count;
                nodes.forget(id, count);
                kernel.release(id);
            }
        }
        Step::ShowName { parent, name, inode } => {
            let number = nodes.shown_id(kernel.pick(parent), &file(NAMES[name], inode, b""));
            nodes.show_without_node(number);
            kernel.uncounted.push(number);
        }
        Step::ForgetName => {
            if let Some(number) = kernel.uncounted.pop() {
                nodes.forget(number, 1);
            }
        }
        Step::Open { node } => {
            let id = kernel.pick(node);
            if let Some(counts) = kernel.counts.get_mut(&id).filter(|counts| counts.0 > 0) {
                counts.1 += 1;
                assert!(nodes.open(id).is_some(), "a node that is known can be opened");
            }
        }
        Step::Close { node } => {
            let id = kernel.pick(node);
            if let Some(counts) = kernel.counts.get_mut(&id).filter(|counts| counts.1 > 0) {
                counts.1 -= 1;
                nodes.close(id);
                kernel.release(id);
            }
        }
        Step::Unlink { parent, name } => {
            nodes.unlink(kernel.pick(parent), NAMES[name]);
        }
        Step::Rename { from, name, to, new_name } => {
            let from = Dentry { parent: kernel.pick(from), name: NAMES[name].into() };
            let to = Dentry { parent: kernel.pick(to), name: NAMES[new_name].into() };
            if nodes.get(to.parent).is_some_and(|node| node.directory.is_some()) && from != to {
                nodes.rename(&from, &to);
            }
        }
        Step::LearnAbsent { parent, name } => {
            let parent = kernel.pick(parent);
            if let Some(directory) = nodes.directory(parent) {
                let known = directory.absent.len();
                directory.learn_absent(NAMES[name]);
                nodes.absent += nodes.directory(parent).unwrap().absent.len() - known;
            }
        }
        Step::TakeOver => {
            // What only the predecessor has open is open no more.
            for (id, opens) in kernel.counts.iter_mut().map(|(id, counts)| (*id, &mut counts.1)) {
                (0..std::mem::take(opens)).for_each(|_| nodes.close(id));
            }
            kernel.counts.retain(|_, counts| *counts != (0, 0));
            let (known, absent) = (snapshot(nodes), nodes.absent);
            let (ledger, records) = Ledger::open(nodes.ledger.descriptor().unwrap().unwrap()).unwrap();
            *nodes = NodeTable::restore("/", ledger, &records).unwrap();
            assert_eq!(snapshot(nodes), known);
            assert_eq!(nodes.absent, absent);
        }
    }
}

/// What the kernel was told of each node, and where the names lead.
fn snapshot(nodes: &mut NodeTable) -> Vec<impl std::fmt::Debug + PartialEq + use<>> {
    let of_node = |(id, node): (NodeId, &mut NodeRecord)| {
        let directory = node.directory.as_ref();
        let sorted = |names: &mut dyn Iterator<Item = String>| {
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        let names = sorted(&mut node.names.iter().map(|name| format!("{name:?}")));
        let children =
            sorted(&mut directory.iter().flat_map(|d| &d.children).map(|child| format!("{child:?}")));
        let absent = sorted(&mut directory.iter().flat_map(|d| d.absent.keys()).map(|name| name.to_string()));
        let home = node.home.clone();
        (id, node.generation, node.lookups, home, names, children, absent, node.entry.clone())
    };
    let mut all: Vec<_> = nodes.iter_mut().map(of_node).collect();
    all.sort_by_key(|node| node.0);
    all
}

fn check(nodes: &mut NodeTable, kernel: &KernelModel) {
    for (id, (lookups, opens)) in &kernel.counts {
        let node = nodes.get(*id).unwrap_or_else(|| panic!("node {id} is held by the kernel and gone"));
        let uncounted = kernel.uncounted.iter().filter(|number| *number == id).count() as u64;
        // Forgotten lookups are taken for those of names without nodes first.
        assert!((*lookups..=*lookups + uncounted).contains(&node.lookups));
        assert_eq!(node.opens, *opens);
    }
    assert!(nodes.uncounted_lookups() <= kernel.uncounted.len() as u64);
    let named: Vec<_> =
        nodes.iter_mut().map(|(id, node)| (id, node.names.clone(), node.home.clone())).collect();
    for (id, names, home) in named {
        for dentry in &names {
            assert_eq!(nodes.child(dentry.parent, &dentry.name), Some(id));
        }
        assert!(names.is_empty() || names.contains(&home), "a node is at home where it has a name");
        assert!(nodes.get(home.parent).is_some(), "the home of a live node is live");
        // Terminates only if no directory is inside itself.
        assert!(nodes.path(id).starts_with('/'));
    }
}

proptest! {
    #[test]
    fn nodes_live_exactly_as_long_as_they_are_held(steps in proptest::collection::vec(step(), 1..120)) {
        let ledger = Ledger::create(1 << 20).unwrap();
        let mut nodes = NodeTable::new("/", Arc::new(directory("", 0)), ledger);
        let only_root = nodes.bytes;
        let mut kernel = KernelModel::default();
        for step in &steps {
            run(&mut nodes, &mut kernel, step);
            check(&mut nodes, &kernel);
        }
        let counts: Vec<_> = kernel.counts.drain().collect();
        for (id, (lookups, opens)) in counts {
            (0..opens).for_each(|_| nodes.close(id));
            nodes.forget(id, lookups);
        }
        kernel.uncounted.iter().for_each(|number| nodes.forget(*number, 1));
        let absent = nodes.directory(ROOT).unwrap().forget_all().absent;
        absent.into_iter().for_each(|(_, record)| nodes.ledger.remove(record));
        nodes.absent = 0;
        let left = Ledger::open(nodes.ledger.descriptor().unwrap().unwrap()).unwrap().1;
        prop_assert_eq!(left.len(), 1, "the ledger has more than the root: {:?}", left);
        prop_assert_eq!(nodes.uncounted_lookups(), 0);
        prop_assert_eq!(nodes.len(), 1, "only the root is left");
        prop_assert_eq!((nodes.cached_entries, nodes.cached_bytes, nodes.absent, nodes.snapshots), (0, 0, 0, 0));
        prop_assert_eq!(nodes.bytes, only_root);
    }
}
