//! Doubly linked lists through the nodes of a pool. Each node can be on two lists.

use std::ops::{Index, IndexMut};

/// No node.
pub(super) const NONE: u32 = u32::MAX;

/// The neighbours of a node on one list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    newer: u32,
    older: u32,
}

impl Links {
    /// On no list.
    pub(super) const UNLINKED: Self = Self { newer: NONE, older: NONE };
}

/// A node that can be on a list of kind 0 and on a list of kind 1 at the same time.
pub(super) trait Linked {
    /// The neighbours on the list of that kind.
    fn links(&self, kind: usize) -> &Links;
    /// The same, to change them.
    fn links_mut(&mut self, kind: usize) -> &mut Links;
}

/// A list of kind `KIND`, from newest to oldest.
#[derive(Debug, Clone, Copy)]
pub(super) struct List<const KIND: usize> {
    newest: u32,
    oldest: u32,
}

impl<const KIND: usize> Default for List<KIND> {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE }
    }
}

impl<const KIND: usize> List<KIND> {
    /// The node that has been on the list longest, or [`NONE`].
    pub(super) fn oldest(&self) -> u32 {
        self.oldest
    }

    /// The node that came after `node`, or [`NONE`].
    pub(super) fn newer<N: Linked>(&self, nodes: &NodePool<N>, node: u32) -> u32 {
        nodes[node].links(KIND).newer
    }

    /// Puts a node that is on no list of this kind at the newest end.
    pub(super) fn push<N: Linked>(&mut self, nodes: &mut NodePool<N>, node: u32) {
        *nodes[node].links_mut(KIND) = Links { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = node,
            older => nodes[older].links_mut(KIND).newer = node,
        }
        self.newest = node;
    }

    /// Takes a node off this list.
    pub(super) fn remove<N: Linked>(&mut self, nodes: &mut NodePool<N>, node: u32) {
        let Links { newer, older } = std::mem::replace(nodes[node].links_mut(KIND), Links::UNLINKED);
        match newer {
            NONE => self.newest = older,
            newer => nodes[newer].links_mut(KIND).older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => nodes[older].links_mut(KIND).newer = newer,
        }
    }
}

/// Nodes by number. Numbers of released nodes are used again.
#[derive(Debug)]
pub(super) struct NodePool<N> {
    nodes: Vec<N>,
    free: Vec<u32>,
}

impl<N> Default for NodePool<N> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new() }
    }
}

impl<N> NodePool<N> {
    /// Stores `node`, and returns its number.
    pub(super) fn insert(&mut self, node: N) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self[number] = node;
                number
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer than 4 billion nodes")
            }
        }
    }

    /// Lets the number be used again. The node must be on no list.
    pub(super) fn release(&mut self, number: u32) {
        self.free.push(number);
    }
}

impl<N> Index<u32> for NodePool<N> {
    type Output = N;

    fn index(&self, number: u32) -> &N {
        &self.nodes[number as usize]
    }
}

impl<N> IndexMut<u32> for NodePool<N> {
    fn index_mut(&mut self, number: u32) -> &mut N {
        &mut self.nodes[number as usize]
    }
}
