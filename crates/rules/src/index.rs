//! Entries found by where they are: a tree of labels, the outermost first, and below each host a tree
//! of segments. A decision looks at what is on its way down and at nothing else.

use std::cmp::Ordering;

use crate::entry::{Entry, EntryHosts, Place, Side};
use crate::glob::{self, Glob, Step};
use crate::line::Network;

/// Values by patterns, looked up by what the patterns match.
#[derive(Debug)]
struct Tree {
    nodes: Vec<Node>,
    folded: bool,
}

#[derive(Debug, Default)]
struct Node {
    /// In the order of their text.
    literals: Vec<(Box<str>, u32)>,
    globs: Vec<(Glob, u32)>,
    /// Of patterns that end here.
    here: Vec<u32>,
    /// Of patterns whose rest begins with `**`.
    rests: Vec<(Box<[Step]>, u32)>,
}

impl Tree {
    fn new(folded: bool) -> Self {
        Self { nodes: vec![Node::default()], folded }
    }

    fn insert(&mut self, steps: &[Step], value: u32) {
        let mut at = 0;
        for (index, step) in steps.iter().enumerate() {
            let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
            let node = &mut self.nodes[at];
            let found = match step {
                Step::Many => {
                    node.rests.push((steps[index..].into(), value));
                    return;
                }
                Step::One(Glob::Literal(text)) => {
                    let key = match self.folded {
                        true => text.to_ascii_lowercase().into(),
                        false => text.clone(),
                    };
                    match node.literals.binary_search_by(|(known, _)| known.cmp(&key)) {
                        Ok(place) => node.literals[place].1,
                        Err(place) => {
                            node.literals.insert(place, (key, next));
                            next
                        }
                    }
                }
                Step::One(glob) => match node.globs.iter().find(|(known, _)| known == glob) {
                    Some((_, known)) => *known,
                    None => {
                        node.globs.push((glob.clone(), next));
                        next
                    }
                },
            };
            if found == next {
                self.nodes.push(Node::default());
            }
            at = found as usize;
        }
        self.nodes[at].here.push(value);
    }

    fn each<S: AsRef<str>>(&self, parts: &[S], see: &mut impl FnMut(u32)) {
        if self.nodes.len() > 1 || !self.nodes[0].rests.is_empty() || !self.nodes[0].here.is_empty()
        {
            self.below(0, parts, see);
        }
    }

    fn below<S: AsRef<str>>(&self, at: u32, parts: &[S], see: &mut impl FnMut(u32)) {
        let node = &self.nodes[at as usize];
        for (steps, value) in &node.rests {
            if matches!(**steps, [Step::Many]) || glob::matches(steps, parts, self.folded) {
                see(*value);
            }
        }
        let Some((first, rest)) = parts.split_first() else {
            node.here.iter().for_each(|value| see(*value));
            return;
        };
        let first = first.as_ref();
        let found = match self.folded {
            true => node.literals.binary_search_by(|(known, _)| order_folded(known, first)),
            false => node.literals.binary_search_by(|(known, _)| (**known).cmp(first)),
        };
        if let Ok(place) = found {
            self.below(node.literals[place].1, rest, see);
        }
        for (glob, next) in &node.globs {
            if glob.matches(first, self.folded) {
                self.below(*next, rest, see);
            }
        }
    }
}

/// `known` is in lower case.
fn order_folded(known: &str, text: &str) -> Ordering {
    known.bytes().cmp(text.bytes().map(|byte| byte.to_ascii_lowercase()))
}

/// Entries of one side.
#[derive(Debug)]
pub(crate) struct Index {
    side: Side,
    entries: Vec<Entry>,
    /// To groups.
    names: Tree,
    /// To groups.
    networks: Vec<(Network, u32)>,
    groups: Vec<Group>,
}

/// Entries about the same hosts.
#[derive(Debug)]
struct Group {
    hosts: EntryHosts,
    all: Vec<u32>,
    /// Those about every path.
    anywhere: Vec<u32>,
    exact: Tree,
    folded: Tree,
}

impl Index {
    pub(crate) fn new(side: Side) -> Self {
        Self {
            side,
            entries: Vec::new(),
            names: Tree::new(false),
            networks: Vec::new(),
            groups: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let group = match self.groups.iter().position(|group| group.hosts == entry.hosts) {
            Some(group) => group,
            None => {
                let group = number(self.groups.len());
                match &entry.hosts {
                    EntryHosts::Names(steps) => self.names.insert(steps, group),
                    EntryHosts::Network(network) => self.networks.push((*network, group)),
                }
                self.groups.push(Group {
                    hosts: entry.hosts.clone(),
                    all: Vec::new(),
                    anywhere: Vec::new(),
                    exact: Tree::new(false),
                    folded: Tree::new(true),
                });
                self.groups.len() - 1
            }
        };
        let group = &mut self.groups[group];
        let index = number(self.entries.len());
        group.all.push(index);
        match &entry.path {
            None => group.anywhere.push(index),
            Some(path) if entry.folded || self.side == Side::Deny => {
                group.folded.insert(path, index)
            }
            Some(path) => group.exact.insert(path, index),
        }
        self.entries.push(entry);
    }

    /// All entries that are about a place. One may be seen twice.
    pub(crate) fn each<'a>(&'a self, place: &Place<'_>, mut see: impl FnMut(&'a Entry)) {
        let mut see = |index: u32| {
            let entry = &self.entries[index as usize];
            if entry.is_at_port(place.port, self.side) {
                see(entry);
            }
        };
        let mut in_group = |group: u32| {
            let group = &self.groups[group as usize];
            let Some(segments) = place.segments else {
                group.all.iter().for_each(|index| see(*index));
                return;
            };
            group.anywhere.iter().for_each(|index| see(*index));
            group.exact.each(segments, &mut see);
            group.folded.each(segments, &mut see);
            // Servers differ about a slash at the end.
            if self.side == Side::Deny
                && let [before @ .., last] = segments
                && last.is_empty()
            {
                group.folded.each(before, &mut see);
            }
        };
        if place.address.is_none() {
            self.names.each(place.labels(), &mut in_group);
        }
        for (network, group) in &self.networks {
            if place.is_in(*network, self.side) {
                in_group(*group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::glob::Sequence;

    proptest! {
        #[test]
        fn what_is_found_is_what_matches(
            patterns in prop::collection::vec("(a|b|A|a\\*|\\*|\\*\\*)(/(a|b|\\*|\\*\\*)){0,4}", 1..8),
            text in "(a|b|A|ab)(/(a|b)){0,5}/?",
            folded: bool,
        ) {
            let sequences: Vec<Sequence> = patterns
                .iter()
                .map(|pattern| Sequence::new(pattern, pattern.split('/'), str::to_owned).unwrap())
                .collect();
            let mut tree = Tree::new(folded);
            for (sequence, value) in sequences.iter().zip(0..) {
                tree.insert(sequence.steps(), value);
            }
            let parts: Vec<&str> = text.split('/').collect();
            let mut found = Vec::new();
            tree.each(&parts, &mut |value| found.push(value));
            found.sort_unstable();
            let expected: Vec<u32> = (0..)
                .zip(&sequences)
                .filter(|(_, sequence)| sequence.matches(&parts, folded))
                .map(|(value, _)| value)
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
