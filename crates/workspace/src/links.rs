//! Where a symbolic link leads, decided without following it.

use archive::{InodeKind, Name, Root};

/// Links on the way that Linux follows before it gives up (`MAXSYMLINKS`): what needs more leads
/// nowhere.
const MAX_HOPS: usize = 40;

/// Components that are looked at for all links of a transfer together. A hundred thousand links
/// of ten components each need a twentieth of it; a guest that builds labyrinths gets a minute of
/// one CPU at most.
pub const MAX_STEPS: u64 = 20_000_000;

/// What stands at a name, as far as links are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Below {
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// Anything else, or nothing. What is missing now may be made later, so both count as a
    /// directory.
    Plain,
}

impl Below {
    /// What stands at a name in a directory.
    pub(crate) fn at(root: &Root, name: &Name) -> Self {
        match root.inode(name) {
            Ok(Some(inode)) if inode.kind == InodeKind::Symlink => {
                root.link_target(name).map_or(Self::Plain, Self::Link)
            }
            _ => Self::Plain,
        }
    }
}

/// Where a link leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// To a place in the tree, or in circles.
    Inside,
    /// Out of the tree.
    Leaves {
        /// The links on the way, itself excluded.
        through: Vec<Name>,
    },
}

/// What is left of [`MAX_STEPS`].
#[derive(Debug, Clone)]
pub struct Steps(u64);

impl Default for Steps {
    fn default() -> Self {
        Self(MAX_STEPS)
    }
}

impl Steps {
    /// Puts the components of a target ahead, the first last, and pays for them.
    fn take(&mut self, target: &[u8], ahead: &mut Vec<Vec<u8>>) -> Option<()> {
        let before = ahead.len();
        ahead.extend(target.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
        self.0 = self.0.checked_sub((ahead.len() - before) as u64)?;
        Some(())
    }
}

/// Resolves the link `link` with this `target` in a tree whose root nothing may leave. `below`
/// tells what stands at a name. `None` when the steps are used up.
pub fn resolve(
    link: &Name,
    target: &[u8],
    below: impl Fn(&Name) -> Below,
    steps: &mut Steps,
) -> Option<Resolution> {
    let mut at = link.split().map_or(Name::ROOT, |(parent, _)| parent);
    let mut through = Vec::new();
    if target.starts_with(b"/") {
        return Some(Resolution::Leaves { through });
    }
    let mut ahead = Vec::new();
    steps.take(target, &mut ahead)?;
    while let Some(component) = ahead.pop() {
        match component.as_slice() {
            b"" | b"." => {}
            b".." => match at.split() {
                Some((parent, _)) => at = parent,
                None => return Some(Resolution::Leaves { through }),
            },
            component => {
                // A name that is too long for any path leads nowhere.
                let Ok(name) = at.join(component) else { return Some(Resolution::Inside) };
                match below(&name) {
                    Below::Plain => at = name,
                    Below::Link(target) => {
                        through.push(name);
                        if target.starts_with(b"/") {
                            return Some(Resolution::Leaves { through });
                        }
                        if through.len() > MAX_HOPS {
                            return Some(Resolution::Inside);
                        }
                        steps.take(&target, &mut ahead)?;
                    }
                }
            }
        }
    }
    Some(Resolution::Inside)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap()
    }

    fn leaves(link: &str, target: &str, links: &[(&str, &str)]) -> bool {
        let links: HashMap<Name, &str> =
            links.iter().map(|(link, target)| (name(link), *target)).collect();
        let below = |at: &Name| match links.get(at) {
            Some(target) => Below::Link(target.as_bytes().to_vec()),
            None => Below::Plain,
        };
        let resolution = resolve(&name(link), target.as_bytes(), below, &mut Steps::default());
        matches!(resolution.unwrap(), Resolution::Leaves { .. })
    }

    #[test]
    fn links_that_stay_and_links_that_leave() {
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], bool);
        let table: &[Case<'_>] = &[
            ("a", "b", &[], false),
            ("a", "./b//c/", &[], false),
            ("d/a", "../b", &[], false),
            ("d/a", "..", &[], false),
            ("a", "a", &[("a", "a")], false),
            ("a", "b", &[("a", "b"), ("b", "a")], false),
            ("a", "d/..", &[], false),
            ("a", "/", &[], true),
            ("a", "/etc/passwd", &[], true),
            ("a", "..", &[], true),
            ("d/a", "../../x", &[], true),
            ("a", "d/../../x", &[], true),
            ("a", "missing/../../x", &[], true),
            // Inside by its text, outside by another link.
            ("a", "b/x", &[("b", "/etc")], true),
            ("a", "b/x", &[("b", "c"), ("c", "..")], true),
            ("d/e/a", "l/../../x", &[("d/e/l", "../..")], true),
            ("d/e/a", "../l/..", &[("d/l", "e")], false),
            // Outside by its text, inside by another link.
            ("a", "l/../../x", &[("l", "d/e/f")], false),
        ];
        for (link, target, links, expected) in table {
            assert_eq!(leaves(link, target, links), *expected, "{link} -> {target} {links:?}");
        }
    }

    #[test]
    fn a_labyrinth_uses_up_the_steps() {
        let below = |_: &Name| Below::Link(b"a/".repeat(2000));
        let mut steps = Steps(10_000);
        let end = (0..10_000).find(|_| resolve(&name("l"), b"x", below, &mut steps).is_none());
        assert!(end.is_some());
    }

    proptest! {
        /// The kernel is asked: what it resolves to a place outside must be known to leave.
        #[test]
        fn nothing_that_the_kernel_follows_out_is_taken_for_inside(
            links in proptest::collection::vec((0..4usize, proptest::collection::vec(
                prop_oneof![Just(".."), Just("d"), Just("l0"), Just("l1"), Just("."), Just("l2")],
                1..6,
            )), 1..6),
        ) {
            let places = ["", "d/", "d/d/", "d/d/d/"];
            let outside = tempfile::tempdir().unwrap();
            let tree = outside.path().canonicalize().unwrap().join("tree");
            fs::create_dir_all(tree.join("d/d/d")).unwrap();
            let mut made = HashMap::new();
            for (at, (place, target)) in links.iter().enumerate() {
                let link = format!("{}l{}", places[*place], at % 3);
                let target = target.join("/");
                if symlink(&target, tree.join(&link)).is_ok() {
                    made.insert(name(&link), target);
                }
            }
            let below = |at: &Name| match made.get(at) {
                Some(target) => Below::Link(target.as_bytes().to_vec()),
                None => Below::Plain,
            };
            for (link, target) in &made {
                let resolution =
                    resolve(link, target.as_bytes(), below, &mut Steps::default()).unwrap();
                if let Ok(end) = tree.join(link.as_path()).canonicalize()
                    && !end.starts_with(&tree)
                {
                    prop_assert!(
                        matches!(resolution, Resolution::Leaves { .. }), "{link} -> {target} is {end:?}"
                    );
                }
            }
        }
    }
}
